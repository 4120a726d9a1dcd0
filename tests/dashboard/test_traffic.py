"""The traffic matrix, and packets as a download. Nodes here have no network: what they would say comes from the test."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.cluster.cluster import ROOT
from tests.scenario.cli_lab import Fabric

Open = Callable[..., Page]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
TINY = ("--image", "tiny", "--cpu", "1", "--memory", "128M")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module", autouse=True)
def talker(fabric: Fabric) -> None:
    said = fabric.weft("vm", "create", "talker", *TINY)
    assert said.code == 0, said.err


def flow(direction: str, peer: str, sent: int, received: int) -> dict[str, object]:
    own, other = ("source_name", "destination_name") if direction == "out" else ("destination_name", "source_name")
    counts = {"sent_bytes": sent, "received_bytes": received, "packets": 9, "sent_packets": 4}
    return {"direction": direction, "network": "default", "verdict": "allowed", own: "talker", other: peer, **counts}


def test_the_matrix_is_a_heat_map_and_a_table_in_light_and_dark(open_page: Open) -> None:
    def answer(socket: WebSocketRoute) -> None:
        flows = [
            flow("out", "", 5_000_000, 100),
            flow("in", HOSTILE, 700, 30_000),
            flow("in", "a workload of another project", 0, 9),
        ]
        socket.send(json.dumps({"flows": flows}).encode())
        socket.close(code=1000)

    page = open_page("networks", color_scheme="light")
    page.route_web_socket(lambda url: "/v1/stream" in url, answer)
    page.get_by_role("button", name="Last hour").click()
    table = page.get_by_role("region", name="Traffic")
    expect(table.get_by_role("row").filter(has_text="outside").first).to_contain_text("4.8 MiB")
    expect(table).to_contain_text(HOSTILE)
    expect(table).to_contain_text("a workload of another project")
    heat = page.get_by_role("img", name="Heat map of")
    expect(heat).to_be_visible()
    shades = heat.locator("rect[fill='var(--accent)']")
    assert len({shades.nth(at).get_attribute("fill-opacity") for at in range(shades.count())}) >= 3
    page.evaluate(AXE.read_text())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate("axe.run()")["violations"] == []


def test_a_capture_is_downloaded_as_whole_packets(open_page: Open, fabric: Fabric, tmp_path: Path) -> None:
    head = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    packets = [struct.pack("<IIII", 1, 2, size, size) + b"{" * size for size in (60, 1500, 0x7B)]
    body = head + b"".join(packets)

    def answer(socket: WebSocketRoute) -> None:
        for at in range(0, len(body), 700):
            socket.send(body[at : at + 700])
        socket.send(json.dumps({"packets": 3, "bytes": len(body), "dropped": 5, "ended": "seconds"}).encode())
        socket.close(code=1000)

    page = open_page("o/vm/default/talker/capture")  # not by way of the summary, which reads a stream of its own
    page.route_web_socket(lambda url: "/v1/stream" in url, answer)
    page.get_by_label("Filter").fill("tcp port 80 or host 10.0.0.9")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Capture").click()
    assert downloading.value.suggested_filename == "talker.pcap"
    downloading.value.save_as(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == body
    expect(page.locator("main p[role=status]")).to_contain_text("3 packets")
    expect(page.locator("main p[role=status]")).to_contain_text("5 more came too fast")
    expect(page.locator(".command")).to_contain_text(
        "weft network capture vm/talker --filter 'tcp port 80 or host 10.0.0.9'"
    )
    records = json.loads(fabric.weft("api", "get", "/v1/audit").out)["items"]
    (record,) = [one for one in records if one.get("path", "").endswith("/vms/talker:capture")]
    changes = {change["field"]: change["new"] for change in record["objects"][0]["changes"]}
    assert changes["input.filter"] == "tcp port 80 or host 10.0.0.9" and record["outcome"] == "allowed"


def test_what_a_node_refuses_is_said_and_nothing_is_downloaded(open_page: Open) -> None:
    page = open_page("o/vm/default/talker/capture")
    page.get_by_role("button", name="Capture").click()
    expect(page.locator("main p[role=status]")).to_contain_text("can't capture packets")
    expect(page.get_by_role("button", name="Capture")).to_be_enabled()
