"""How many clicks the tasks take that the guide compares with other products' pages, counted by clicking."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.cluster.cluster import ROOT, until
from tests.scenario.cli_lab import Fabric

Open = Callable[..., Page]
TINY = ("--image", "tiny", "--cpu", "1", "--memory", "128M")
GUIDE = (ROOT / "docs" / "guide" / "dashboard.md").read_text()


class Hand:
    """A person's, on the first page of who is signed in. Opening a list and choosing from it are two clicks; typing is none."""

    def __init__(self, page: Page) -> None:
        self.page, self.clicks = page, 0

    def click(self, target: Locator) -> None:
        target.click()
        self.clicks += 1

    def go(self, name: str) -> None:
        self.click(self.page.get_by_role("navigation", name="Pages").get_by_role("link", name=name, exact=False).first)


def written(task: str) -> int:
    """What the guide's table says of weft."""
    (row,) = re.findall(rf"^\| {re.escape(task)} \| (\d+)", GUIDE, re.MULTILINE)
    return int(row)


@pytest.fixture(scope="module", autouse=True)
def guests(fabric: Fabric) -> Iterator[None]:
    assert fabric.weft("vm", "create", "desk", *TINY).code == 0
    assert (
        fabric.weft("vm", "create", "vast", "--image", "tiny", "--cpu", "64", "--memory", "900G", "--detach").code == 0
    )
    yield
    fabric.weft("vm", "delete", "desk", "vast", "--yes")


@pytest.fixture
def hand(open_page: Open) -> Hand:
    page = open_page("")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    return Hand(page)


def test_creating_a_vm(hand: Hand, fabric: Fabric) -> None:
    hand.click(hand.page.get_by_role("button", name="Create VM"))
    dialog = hand.page.get_by_role("dialog")
    expect(dialog.get_by_label("image", exact=False).first).to_have_value("tiny")  # there is no other
    hand.page.keyboard.type("typed")  # the name has the focus
    hand.click(dialog.get_by_role("button", name="Create VM"))
    expect(hand.page.locator("h1")).to_have_text("VM typed")
    fabric.weft("vm", "delete", "typed", "--yes")
    assert hand.clicks == written("create a VM from an image")


def test_taking_a_snapshot(hand: Hand, fabric: Fabric) -> None:
    hand.go("Workloads")
    hand.click(hand.page.get_by_role("link", name="desk", exact=True))
    hand.click(hand.page.get_by_role("button", name="Snapshot", exact=True))
    hand.click(hand.page.get_by_role("dialog").get_by_role("button", name="Snapshot VM desk"))
    until(lambda: json.loads(fabric.weft("get", "snapshot", "-o", "json").out)["items"])
    for one in json.loads(fabric.weft("get", "snapshot", "-o", "json").out)["items"]:
        fabric.weft("snapshot", "delete", one["name"], "--yes")
    assert hand.clicks == written("take a snapshot of it")


def test_opening_a_terminal(hand: Hand) -> None:
    hand.go("Workloads")
    hand.click(hand.page.get_by_role("link", name="Terminal of desk"))
    expect(hand.page.locator(".screen")).to_be_visible()
    assert hand.clicks == written("open its terminal")


def test_reading_what_a_crashed_container_printed(open_page: Open) -> None:
    page = open_page("nowhere")

    def tell(route: Route) -> None:  # nodes here run no containers
        problem = {
            "kind": "container",
            "project": "default",
            "name": "shop",
            "phase": "Failed",
            "health": "failed",
            "note": "exited: 1",
        }
        body = f"event: summary\ndata: {json.dumps({'problems': [problem], 'phases': {}})}\n\n"
        route.fulfill(content_type="text/event-stream", body=body)

    page.route(re.compile("/v1/dashboard/stream"), tell)
    page.evaluate("location.hash = '#/'")
    hand = Hand(page)
    hand.click(page.get_by_text("What is wrong").locator("..").get_by_role("link", name="logs"))
    expect(page.get_by_role("link", name="Logs", exact=True).last).to_have_attribute("aria-current", "page")
    assert hand.clicks == written("read what a crashed container printed")


def test_learning_why_a_vm_is_pending(hand: Hand) -> None:
    wrong = hand.page.get_by_text("What is wrong").locator("..")
    expect(wrong).to_contain_text("needs 64 cpu")
    assert hand.clicks == written("learn why a VM is pending")
    wrong.get_by_role("listitem").filter(has_text="vast").get_by_role("link", name="why").click()
    expect(hand.page.get_by_role("heading", name="What if it asked for something else?")).to_be_visible()


def test_seeing_what_is_full_and_what_changed(hand: Hand) -> None:
    row = hand.page.get_by_role("region", name="Nodes").get_by_role("row").filter(has_text="n1")
    expect(row.get_by_role("img", name=re.compile("^memory: .* given"))).to_be_visible()
    assert hand.clicks == written("see which node is full")
    expect(
        hand.page.get_by_role("heading", name="Newest events").locator("..").get_by_role("listitem").first
    ).to_be_visible()
    assert hand.clicks == written("see what changed")


def test_rolling_a_deployment_back(hand: Hand, fabric: Fabric) -> None:
    words = ("--vm", *TINY, "--replicas", "1", "--min-healthy", "0s")
    assert fabric.weft("deployment", "create", "rolled", *words).code == 0
    assert fabric.weft("deployment", "update", "rolled", "--memory", "192M").code == 0
    try:
        hand.click(
            hand.page.get_by_role("navigation", name="How many there are").get_by_role("link", name="deployment")
        )
        hand.click(hand.page.get_by_role("link", name="rolled", exact=True))
        hand.click(hand.page.get_by_role("button", name="Undo", exact=True))
        hand.click(hand.page.get_by_role("dialog").get_by_role("button", name="Undo deployment rolled"))
        spec = lambda: json.loads(fabric.weft("get", "deployment/rolled", "-o", "json").out)["spec"]  # noqa: E731
        until(lambda: spec()["template"]["memory"] == 128 << 20)
        assert hand.clicks == written("roll a deployment back")
    finally:
        fabric.weft("deployment", "delete", "rolled", "--yes")


def test_draining_a_node(hand: Hand, fabric: Fabric) -> None:
    hand.go("Nodes")
    hand.click(hand.page.get_by_role("button", name="Drain n2…"))
    try:
        hand.click(hand.page.get_by_role("dialog").get_by_role("button", name="Drain n2", exact=True))
        until(lambda: json.loads(fabric.weft("node", "get", "n2", "-o", "json").out)["actions"].get("drain"))
        assert hand.clicks == written("drain a node, seeing first what goes where")
    finally:
        fabric.weft("node", "uncordon", "n2")
