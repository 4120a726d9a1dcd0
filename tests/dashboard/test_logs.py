"""Lines of several workloads on one page. Guests here print nothing: what a node would send comes from the test."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.cluster.cluster import ROOT
from tests.scenario.cli_lab import Fabric

Open = Callable[..., Page]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
TINY = ("--image", "tiny", "--cpu", "1", "--memory", "128M", "--label", "app=chorus", "--detach")
HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\u202e"
SECOND = "2026-11-25T15:59:{:02d}.000000Z"
SHOWN = "2026-11-25 15:59:{:02d}.000"


@pytest.fixture(scope="module", autouse=True)
def chorus(fabric: Fabric) -> None:
    for name in ("alto", "bass", "mute"):
        said = fabric.weft("vm", "create", name, *TINY)
        assert said.code == 0, said.err


def read_claims(socket: WebSocketRoute) -> dict[str, Any]:
    body = parse_qs(urlsplit(socket.url).query)["ticket"][0].split(".")[0]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


def line(second: int, message: str) -> bytes:
    return json.dumps({"time": SECOND.format(second), "source": "vm/liar", "message": message}).encode() + b"\n"


def test_lines_of_several_workloads_are_merged_and_what_one_lacks_is_said_beside_it(open_page: Open) -> None:
    asked: dict[str, dict[str, Any]] = {}
    sockets: dict[str, WebSocketRoute] = {}
    printed = {
        "alto": b"".join(line(second, f"alto {second}") for second in (1, 3)) + line(5, HOSTILE),
        "bass": line(2, "bass 2") + line(4, "bass 4"),
    }

    def answer(socket: WebSocketRoute) -> None:
        claims = read_claims(socket)
        name = claims["workload"]["name"]
        asked[name], sockets[name] = claims["input"], socket
        if name == "mute":
            socket.close(code=1011, reason="this node keeps no logs")
            return
        middle = len(printed[name]) // 2  # of a line, perhaps
        socket.send(printed[name][:middle])
        socket.send(printed[name][middle:])

    page = open_page("o/vm/default/alto/logs", color_scheme="light")
    page.route_web_socket(lambda url: "/v1/stream" in url, answer)
    page.get_by_role("link", name="together with others").click()
    for name in ("bass", "mute"):
        page.get_by_label("Workload", exact=True).select_option(f"vm/default/{name}")
        page.get_by_role("button", name="Add").click()
        expect(page).to_have_url(re.compile(name))  # the page has it before the next one is added
        page.wait_for_timeout(100)
    expect(page.get_by_label("Workload", exact=True).get_by_role("option", name="bass")).to_have_count(0)  # it is there
    page.get_by_label("since").select_option("1h")
    page.get_by_label("Only lines with").fill("^[ab<]")
    page.get_by_role("button", name="Filter").click()
    page.get_by_label("regular expression").check()
    expect(page.get_by_placeholder("Regular expression")).to_be_visible()
    lines = page.get_by_role("region", name="Lines")
    shown = "<img src=x onerror=alert(1)>?[2J?"
    expect(lines.locator("div")).to_have_text(
        [
            f"{SHOWN.format(second)} vm/{name} {message}"
            for second, name, message in (
                (1, "alto", "alto 1"),
                (2, "bass", "bass 2"),
                (3, "alto", "alto 3"),
                (4, "bass", "bass 4"),
                (5, "alto", shown),
            )
        ]
    )
    sources = page.get_by_role("list", name="Sources").get_by_role("listitem")
    expect(sources.filter(has_text="vm/mute")).to_contain_text("this node keeps no logs")
    expect(sources.filter(has_text="vm/alto")).to_contain_text("follows")
    wanted = {"aggregate": True, "follow": True, "since": 3600, "regex": "^[ab<]"}
    assert wanted.items() <= asked["bass"].items() and not asked["bass"]["filter"]
    bass, printed["bass"] = sockets["bass"], printed["bass"] + line(6, "bass 6")
    bass.close(code=1012)  # as one that is cut: what came is read again, and shown once
    expect(lines.locator("div")).to_have_count(6)
    expect(lines.locator("div").last).to_contain_text("vm/bass bass 6")
    page.evaluate(AXE.read_text())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("axe.run()")["violations"] == []
    sockets["bass"].send(b"".join(line(7, f"many {number}") for number in range(6_000)))
    # Not by role or text alone: that asks for the style of each line.
    expect(page.locator("p.soft", has_text="Only the newest 5000 lines are kept here.")).to_be_visible()
    assert page.locator(".merged div").count() == 5_000
    page.get_by_label("Choose workloads").select_option("label")
    page.get_by_label("Label").fill("app=chorus")
    page.get_by_role("button", name="Choose").click()
    expect(sources).to_have_count(3)
    page.get_by_label("follow").uncheck()
    expect(page.locator(".command")).to_contain_text("weft logs -l app=chorus --aggregate --since 1h --regex '^[ab<]'")
    many = ",".join(f"vm/default/nobody{number}" for number in range(21))
    page.evaluate(f"location.hash = '#/logs?of={many}'")
    expect(page.get_by_role("alert").first).to_contain_text("At most 20 workloads are shown at once")
    expect(sources).to_have_count(20)
    expect(sources.last).to_contain_text("not found")
