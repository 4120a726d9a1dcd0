"""Rebalancing on a page: a plan is asked for, shown as a table and a picture, applied and undone with one click each."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Route, expect

from tests.cluster.cluster import ROOT
from tests.scenario.cli_lab import Fabric

Open = Callable[..., Page]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
HOSTILE = "<img src=x onerror=alert(1)>\u202e"
REPORT = re.compile(r"/v1/reports/asked-")
LOAD = {"cpu_before": 0.9, "cpu_after": 0.5, "memory_before": 0.6, "memory_after": 0.3}


@pytest.fixture(scope="module", autouse=True)
def crowded(fabric: Fabric) -> None:
    said = fabric.weft("vm", "create", "crowded", "--image", "tiny", "--cpu", "1", "--memory", "128M")
    assert said.code == 0, said.err


def test_a_plan_is_shown_applied_and_undone_with_one_click_each(open_page: Open, fabric: Fabric) -> None:
    vm = json.loads(fabric.weft("vm", "get", "crowded", "-o", "json").out)
    here = vm["status"]["node"]
    there = "n2" if here == "n1" else "n1"
    step = {"workload": "vm/crowded", "project": "default", "uid": vm["uid"], "from": here, "to": there}
    step |= {"seconds": 12.0, "bytes": 1 << 30, "reason": HOSTILE}
    answer = {"phase": "Done", "score_before": 19.5, "score_after": 3.25, "steps": [step]}
    answer["loads"] = [{"node": "n1", **LOAD}, {"node": "n2", **LOAD}]

    def tell(route: Route) -> None:
        if route.request.method == "GET":
            route.fulfill(json={"status": answer})
        else:
            route.continue_()

    page = open_page("rebalance")
    page.route(REPORT, tell)
    page.get_by_role("button", name="Plan now").click()
    expect(page.get_by_role("row").filter(has_text="vm/crowded").first).to_contain_text(there)
    picture = page.get_by_role("img", name=re.compile("n1: cores 90 % to 50 %, memory 60 % to 30 %"))
    expect(picture).to_be_visible()
    page.evaluate(AXE.read_text())
    assert [one["id"] for one in page.evaluate("axe.run()")["violations"]] == []
    page.get_by_role("button", name="Apply 1 migration").click()
    plan = page.locator("details").first
    expect(plan).to_contain_text(re.compile("Running|Done"))
    plan.locator("summary").click()
    plan.get_by_role("button", name=re.compile("^Undo")).click()
    expect(plan).to_contain_text(re.compile("Undoing|Undone"))
    assert [one["id"] for one in page.evaluate("axe.run()")["violations"]] == []
    [made] = json.loads(fabric.weft("rebalance", "list", "-o", "json").out)["items"]
    until = time.monotonic() + 30
    while (
        json.loads(fabric.weft("get", f"rebalanceplan/{made['name']}", "-o", "json").out)["status"]["phase"] != "Undone"
    ):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert fabric.weft("delete", f"rebalanceplan/{made['name']}", "--yes").code == 0
