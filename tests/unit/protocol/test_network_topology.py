"""The network between the nodes: what was measured, what is estimated, and what a node may not claim."""

from __future__ import annotations

import math

import pytest

from weft.kinds.network_topology import (
    MOST_DECLARED_LINKS,
    NETWORK_TOPOLOGY,
    NetworkDevice,
    NetworkLink,
    NetworkTopologySpec,
    check_topology,
)
from weft.objects.errors import InvalidInput
from weft.protocol.heartbeat import MOST_PATHS, LinkLoad, PathFigures
from weft.protocol.topology import MOST_LINKS, MOST_PAIRED, MOST_SINGLE, NodeFacts, TopologyLink, make_topology

NOTHING = NetworkTopologySpec()


def host(name: str, rack: str = "r1", **more: object) -> NodeFacts:
    return NodeFacts(uid=f"u-{name}", name=name, zone="z", rack=rack, **more)  # type: ignore[arg-type]


def path(latency: float, bandwidth: float = -1.0, age: float = 5.0) -> PathFigures:
    return PathFigures(latency, age, bandwidth, age if bandwidth >= 0 else -1.0)


def links(*hosts: NodeFacts, declared: NetworkTopologySpec = NOTHING) -> dict[tuple[str, str], TopologyLink]:
    return {(link.source, link.target): link for link in make_topology(hosts, declared).links}


def test_a_pair_has_what_either_of_it_measured_and_the_age_of_the_older_figure() -> None:
    found = links(
        host("a", paths={"u-b": path(0.4, 1000.0, age=40.0)}, paths_age=2.0, link=LinkLoad(250.0, 10.0, 10_000.0)),
        host("b", paths={"u-a": path(0.3, 900.0)}, paths_age=1.0),
    )
    assert found["a", "b"] == TopologyLink("a", "b", 0.3, 900.0, round(250 / 900, 3), 42.0, True)


def test_what_a_pair_lacks_is_estimated_by_coordinates_and_by_the_racks_other_pairs() -> None:
    found = links(
        host("a", paths={"u-c": path(1.0, 100.0), "u-b": path(0.2)}, coordinate=[0.0, 0.0, 0.1]),
        host("b", coordinate=[3.0, 4.0, 0.1]),
        host("c", rack="r2", coordinate=[0.0, 1.0, 0.1]),
    )
    assert found["a", "c"].measured and found["a", "c"].bandwidth_mbps == 100.0
    assert found["a", "b"].measured and found["a", "b"].bandwidth_mbps is None
    between = found["b", "c"]
    assert not between.measured and between.age_seconds is None
    assert between.latency_ms == pytest.approx(math.hypot(3, 3) + 0.2, abs=0.001) and between.bandwidth_mbps == 100.0


def test_a_path_that_is_too_fast_to_measure_has_what_migrations_got_or_what_drivers_say() -> None:
    fast = PathFigures(0.1, 5.0, 4200.0, 5.0, at_least=True)
    pair = (
        host("a", paths={"u-b": fast}, link=LinkLoad(speed_mbps=25_000.0)),
        host("b", link=LinkLoad(speed_mbps=10_000.0)),
    )
    [link] = make_topology(pair, NOTHING).links
    assert (link.bandwidth_mbps, link.measured) == (10_000.0, False)
    [link] = make_topology(pair, NOTHING, carried={frozenset(("a", "b")): 7800.0}).links
    assert (link.bandwidth_mbps, link.measured) == (7800.0, True)


def test_where_nothing_is_known_nothing_is_invented() -> None:
    assert links(host("a"), host("b"))["a", "b"] == TopologyLink("a", "b", None, None, None, None, False)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -3.0, 1e12])
def test_figures_that_no_network_has_are_left_out(wrong: float) -> None:
    liar = host(
        "a", paths={"u-b": path(wrong, wrong, wrong)}, coordinate=[0.0, 0.0, wrong], link=LinkLoad(wrong, wrong)
    )
    told = links(liar, host("b", coordinate=[0.0, 0.0, 0.0]))["a", "b"]
    assert (told.latency_ms, told.bandwidth_mbps, told.utilisation) == (None, None, None)


def test_a_node_can_claim_few_paths_and_none_of_strangers() -> None:
    claimed = {f"u-n{number:03}": path(1.0) for number in range(MOST_PAIRED)}
    hosts = [host(f"n{number:03}") for number in range(MOST_PAIRED)]
    liar = host("liar", paths={"u-stranger": path(1.0), "u-liar": path(1.0), **claimed})
    assert len(make_topology([*hosts, liar], NOTHING).links) == MOST_PATHS - 2


def test_thousands_of_nodes_are_told_by_their_racks_and_one_by_its_own_links() -> None:
    count = 2_000
    hosts = [
        host(f"n{n:04}", rack=f"r{n % 20}", paths={f"u-n{(n + k) % count:04}": path(0.1 * k) for k in range(1, 17)})
        for n in range(count)
    ]
    told = make_topology(hosts, NOTHING)
    assert len(told.nodes) == 20 and {node.nodes for node in told.nodes} == {count // 20}
    assert 0 < len(told.links) <= 20 * 21 // 2
    assert len(make_topology(hosts, NOTHING, of="n0007").links) == count - 1
    every = make_topology(hosts, NOTHING, by="node")
    assert len(every.nodes) == count and len(every.links) == MOST_LINKS and every.left_out == 16 * count - MOST_LINKS
    assert count > MOST_SINGLE


def test_declared_devices_and_links_are_shown_as_such() -> None:
    declared = NetworkTopologySpec(
        devices=[NetworkDevice(name="tor1", rack="r1")],
        links=[
            NetworkLink(source="a", target="tor1", bandwidth_mbps=1000.0, latency_ms=0.1),
            NetworkLink(source="tor1", target="gone"),
        ],
    )
    found = links(host("a", link=LinkLoad(100.0, 500.0)), declared=declared)
    assert list(found.values()) == [TopologyLink("a", "tor1", 0.1, 1000.0, 0.5, None, False, declared=True)]


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (NetworkTopologySpec(devices=[NetworkDevice(name="s1"), NetworkDevice(name="s1")]), "declared twice"),
        (NetworkTopologySpec(links=[NetworkLink(source="a", target="a")]), "both ends are a"),
        (
            NetworkTopologySpec(links=[NetworkLink(source="a", target="b"), NetworkLink(source="b", target="a")]),
            "linked twice",
        ),
        (NetworkTopologySpec(links=[NetworkLink(source="A!", target="b")]), "spec.links[0].source"),
        (NetworkTopologySpec(links=[NetworkLink(source="a", target="b")] * (MOST_DECLARED_LINKS + 1)), "at most"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(spec: NetworkTopologySpec, what: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_topology(spec)
    assert what in refused.value.message


def test_only_those_with_rights_in_all_projects_read_it() -> None:
    assert NETWORK_TOPOLOGY.access.readers == "fabric"
