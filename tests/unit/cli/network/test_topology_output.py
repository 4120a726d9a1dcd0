"""The network between the nodes as people see it: a table, and a map that any program for SVG can read."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import msgspec
import pytest

from weft.cli.network.map import HEIGHT, WIDTH, draw_map
from weft.cli.network.topology import draw_links
from weft.kinds.network_topology import NetworkDevice, NetworkTopologySpec
from weft.protocol.heartbeat import PathFigures
from weft.protocol.topology import NodeFacts, make_topology

SVG = "{http://www.w3.org/2000/svg}"


def topology(count: int, racks: int = 2, rack: str = "r") -> dict[str, Any]:
    hosts = [
        NodeFacts(
            *(f"u{n}", f"n{n}", "z", f"{rack}{n % racks}"),
            paths={f"u{(n + 1) % count}": PathFigures(0.2 + 20 * (n == 0), 5.0, 940.0, 65.0)},
        )
        for n in range(count)
    ]
    declared = NetworkTopologySpec(devices=[NetworkDevice(name="tor", rack="r0", zone="z")])
    return dict(msgspec.to_builtins(make_topology(hosts, declared)))


def test_the_table_says_what_is_known_of_each_link_and_how() -> None:
    rows = draw_links(topology(3))
    assert rows[0] == ["n0", "n2", "0.2 ms", "940 Mbit/s", "–", "65s", "measured"]
    assert [row[2] for row in rows] == ["0.2 ms", "0.2 ms", "20.2 ms"]
    unknown = {"nodes": [], "links": [{**topology(2)["links"][0], "latency_ms": None, "bandwidth_mbps": 9400.0}]}
    assert draw_links(unknown)[0][2:4] == ["–", "9.4 Gbit/s"]


@pytest.mark.parametrize(("count", "racks"), [(0, 1), (1, 1), (3, 2), (40, 3), (190, 40), (3000, 90)])
def test_the_map_has_every_place_inside_the_picture_and_names_those_that_are_far(count: int, racks: int) -> None:
    picture = ET.fromstring(draw_map(topology(count, racks)))
    words = [text.text or "" for text in picture.iter(f"{SVG}text")]
    assert count > 200 or any("tor" in word for word in words)
    assert sum("nodes" in word or "(" in word for word in words) >= min(count, racks)
    if 0 < count <= 40:
        assert any(word.startswith("farthest: n0 – n1 20.2 ms") for word in words) or count == 1
    for box in picture.iter(f"{SVG}rect"):
        left, top = float(box.get("x", 0)), float(box.get("y", 0))
        assert left >= 0 and left + float(box.get("width", 0)) <= WIDTH
        assert top >= 0 and top + float(box.get("height", 0)) <= HEIGHT


def test_a_label_cannot_break_the_picture() -> None:
    ET.fromstring(draw_map(topology(3, rack='<script>&"')))
