"""Traces on the page: a real one of a create, a hostile one that never ends, and the same tree as `weft trace` finds."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.cluster.cluster import ROOT
from tests.scenario.cli_lab import Fabric
from tests.unit.cli.trace.test_waterfall import BASE, make_document, make_span
from weft.cli.trace.tree import read_tree

Open = Callable[..., Page]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
TINY = ("--image", "tiny", "--cpu", "1", "--memory", "128M")
HOSTILE = "<img src=x onerror=alert(1)>\u202e"
READ = """
import { readFileSync } from 'node:fs';
const { readTree, walk } = await import(process.argv[1]);
const trees = JSON.parse(readFileSync(0)).map(([document, now]) => readTree(document, now));
const show = ([depth, node]) => [depth, node.id, node.begin, node.end, node.critical, node.own, node.waited];
console.log(JSON.stringify(trees.map((tree) => [tree.begin, tree.end, [...walk(tree)].map(show)])));
"""


@pytest.fixture(scope="module")
def traced(fabric: Fabric) -> str:
    """The id of the trace of a VM's creation."""
    assert fabric.weft("vm", "create", "traced", *TINY).code == 0
    trace = json.loads(fabric.weft("get", "vm", "traced", "-o", "json").out)["trace"]
    return str(trace).partition("-")[0]


def make_case(chance: random.Random) -> tuple[dict[str, Any], float]:
    """Spans as anybody may send them, of three processes, and the present."""
    made: dict[str, list[Any]] = {"api": [], "n1": [], "n2": []}
    for id in chance.sample("abcdefghij", chance.randint(1, 10)):
        begin = chance.randint(0, 100)
        end = chance.choice([0, begin + chance.randint(1, 100)])
        parent = chance.choice(["", "gone", *"abcdefghij"])
        made[chance.choice(list(made))].append(make_span(id, parent, begin, end, kind=chance.choice([1, 2, 3])))
    return make_document(**made), BASE / 1e9 + 1


def test_the_page_finds_the_tree_and_the_critical_path_that_the_command_finds() -> None:
    chance = random.Random(38)
    deep = make_document(api=[make_span(f"{n}", f"{n - 1}", n, 5000) for n in range(3000)])
    cases = [(deep, BASE / 1e9), ({}, BASE / 1e9), *(make_case(chance) for _ in range(300))]
    expected = []
    for document, now in cases:
        tree = read_tree(document, now)
        first = min(
            (
                int(span["startTimeUnixNano"])
                for one in document.get("resourceSpans", ())
                for span in one["scopeSpans"][0]["spans"]
            ),
            default=0,
        )
        nodes = [
            [depth, one.id, one.begin - first, one.end - first, one.critical, one.own, one.waited]
            for depth, one in tree.walk()
        ]
        expected.append([tree.begin - first, tree.end - first, nodes])
    words = ["node", "--input-type=module", "-e", READ, str(ROOT / "web" / "src" / "ui" / "spans.js")]
    said = subprocess.run(words, input=json.dumps(cases), capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(said.stdout) == expected


def test_a_vm_shows_what_its_creation_took_its_time_for_and_the_list_leads_there(open_page: Open, traced: str) -> None:
    page = open_page("o/vm/default/traced/trace")
    waterfall = page.get_by_role("region", name="Waterfall")
    expect(waterfall.get_by_role("row").filter(has_text="POST vms")).to_contain_text("api")
    expect(waterfall.get_by_role("row").filter(has_text="node/n").first).to_be_visible()
    expect(page.locator(".command")).to_contain_text(f"weft trace {traced}")
    page.get_by_role("link", name="All traces of traced").click()
    page.get_by_label("Order").select_option("newest first")
    table = page.get_by_role("region", name="Traces")
    row = table.get_by_role("row").filter(has_text="POST /v1/projects/default/vms")
    expect(row).to_contain_text("vm/traced")
    row.get_by_role("link").first.click()
    expect(page).to_have_url(re.compile(f"#/traces/{traced}$"))
    expect(waterfall.get_by_role("row").filter(has_text="POST vms")).to_be_visible()
    page.get_by_role("link", name="All traces").click()
    expect(table.get_by_role("row").filter(has_text="vm/traced").first).to_be_visible()
    page.get_by_label("Took at least").select_option("1 min")
    expect(page.get_by_text("No trace is like that")).to_be_visible()
    expect(page.locator(".command")).to_contain_text("weft trace list --slow 1m")


def test_a_hostile_trace_is_text_and_bounded_and_its_rows_are_read_with_keys_in_light_and_dark(open_page: Open) -> None:
    attributes = [{"key": HOSTILE, "value": {"stringValue": HOSTILE * 50}}]
    spans = [make_span("root", "", 0, 900, "POST /v1/projects/default/vms")]
    spans += [make_span("bad", "root", 100, 400, HOSTILE, attributes=attributes, status={"message": HOSTILE})]
    spans += [make_span(f"s{n}", "root" if n % 50 == 0 else f"s{n - 1}", 500 + n / 2, 880) for n in range(700)]
    page = open_page("traces", color_scheme="light")
    page.route(re.compile("/v1/traces/"), lambda route: route.fulfill(json=make_document(**{"node/n1": spans})))
    page.evaluate(f"location.hash = '#/traces/{'ab' * 16}'")
    waterfall = page.get_by_role("region", name="Waterfall")
    expect(page.get_by_text(re.compile("^and 20[0-9] more rows"))).to_be_visible()
    assert waterfall.get_by_role("row").count() == 501  # with the head
    first = waterfall.get_by_role("button").first
    first.focus()
    for key in ("End", "Home", "ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    facts = page.locator("#span-facts")
    expect(facts.get_by_role("definition").filter(has_text="onerror").first).to_be_visible()
    expect(facts).to_contain_text("300 ms")
    assert len(facts.inner_text()) < 2000
    bad = waterfall.get_by_role("row").filter(has_text="onerror").filter(has_text="failed")
    expect(bad).to_contain_text("on the critical path")
    expect(page.get_by_text("Longest:")).to_contain_text("onerror")
    waterfall.get_by_role("row").nth(6).hover()
    expect(facts.get_by_role("heading")).to_have_text(re.compile("^s[0-9]"))
    del spans[12:]  # axe takes its time for each row
    page.reload()
    expect(waterfall.get_by_role("row")).to_have_count(13)
    page.evaluate(AXE.read_text())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate("axe.run()")["violations"] == []
