"""What people find on the pages, what they do there, and what comes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.cluster.cluster import ROOT, until
from tests.long import ALL_EXAMPLES, mark_long
from tests.scenario.cli_lab import Fabric

Open = Callable[..., Page]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
FIRST_LOAD_BYTES = 80_000
ROUTES = [
    "", "workloads", "nodes", "operations", "networks", "storage", "backups", "queue", "people", "audit", "alerts", "logs",
    "rebalance", "traces", "kinds", "k/vms", "k/nodes", "o/vm/default/shown", "o/vm/default/shown/screen",
    "o/vm/default/shown/why",
    "o/vm/default/shown/events", "o/vm/default/shown/trace", "o/vm/default/shown/spec", "o/node/-/n1", "o/vm/default/nothing",
    "nowhere",
]  # fmt: skip
TINY = ("--image", "tiny", "--cpu", "1", "--memory", "128M")
# Once the event was heard and what it changes was shown, the heading is no longer that of the page before.
TURN_TO = """route => new Promise(done => {
  addEventListener('hashchange', () => setTimeout(done), { once: true });
  location.hash = '#/' + route;
})"""


@pytest.fixture(scope="module", autouse=True)
def shown(fabric: Fabric) -> None:
    for name, words in {"shown": TINY, "big": ("--image", "tiny", "--cpu", "64", "--memory", "900G")}.items():
        said = fabric.weft("vm", "create", name, *words, "--detach")
        assert said.code == 0, said.err
    assert fabric.weft("wait", "vm/shown", "--for=phase=Running", "--timeout", "30s").code == 0


def cell(page: Page, text: str) -> object:
    return page.get_by_role("row").filter(has_text=text)


def test_the_first_load_is_small(open_page: Open, relay: object) -> None:
    sizes: list[int] = []
    page = open_page("")
    address = page.url
    page.goto("about:blank")  # answers to the first opening don't count
    page.on("response", lambda response: sizes.append(int(response.headers.get("content-length", "0"))))
    page.goto(address)
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    files = sum(sizes)
    assert 20_000 < files < FIRST_LOAD_BYTES


def test_the_queue_says_who_passed_whom(open_page: Open) -> None:
    words = "<b>vm/short</b> started, as it is over before vm/large can begin"
    waits = {
        "place": 1,
        "workload": "vm/large",
        "kind": "vm",
        "project": "default",
        "priority": 0,
        "waiting_seconds": 60.0,
    }
    waits |= {"expected_start": None, "confidence": "none", "held_by": {"reason": "waits", "message": "it is full"}}
    other = {**waits, "place": 2, "workload": "vm/other"}

    def tell(route: Route) -> None:
        if route.request.method == "GET":
            queue = [{**waits, "passed_by": words}, other]
            route.fulfill(json={"status": {"phase": "Done", "queue": queue, "queued": 2}})
        else:
            route.continue_()

    page = open_page("")
    page.route(re.compile("/(reports|recommendations)/asked-"), tell)
    page.evaluate("location.hash = '#/queue'")
    expect(page.get_by_role("row").filter(has_text="vm/large").first).to_contain_text(words)
    expect(page.get_by_role("columnheader", name="PASSED BY")).to_be_visible()


def test_pages_are_accessible(open_page: Open) -> None:
    page = open_page("devices", color_scheme="light", reduced_motion="reduce")
    expect(page.locator("main h1").first).to_be_visible()
    page.evaluate(AXE.read_text())
    found = []
    for route in ROUTES[:: 1 if ALL_EXAMPLES else 3]:  # all of them in the soak
        page.evaluate(TURN_TO, route)
        expect(page.locator("main h1").first).to_be_visible()
        page.wait_for_timeout(100)  # what it asks for has come: a page without it has been looked at before
        for scheme, rules in (("light", "{}"), ("dark", "{runOnly: ['color-contrast']}")):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            violations = page.evaluate(f"axe.run({rules})")["violations"]
            found += [f"{route} {scheme}: {one['id']}: {one['nodes'][0]['html'][:200]}" for one in violations]
    assert found == []


def test_a_pending_vm_says_why_on_the_first_page(open_page: Open) -> None:
    page = open_page("")
    wrong = page.get_by_text("What is wrong").locator("..")
    expect(wrong).to_contain_text("big")
    expect(wrong).to_contain_text("memory")
    wrong.get_by_role("link", name="big").click()
    page.get_by_role("link", name="Why here").click()
    expect(page.get_by_text("insufficientResources").first).to_be_visible()


def test_the_overview_is_one_screen_with_how_full_nodes_are_and_what_they_used(open_page: Open) -> None:
    page = open_page("nowhere")
    page.set_viewport_size({"width": 1440, "height": 900})
    points = [[1_700_000_000 + 60 * place, str(place)] for place in range(60)]

    def tell(route: Route) -> None:  # this fabric has no history
        of_all = "label_replace" in route.request.url
        metric = {"of": "cpu"} if of_all else {"__name__": "weft_node_cpu_used_cores", "node": "n1"}
        route.fulfill(json={"data": {"result": [{"metric": metric, "values": points}]}})

    page.route(re.compile(r"/query_range\?"), tell)
    page.evaluate("location.hash = '#/'")
    expect(page.get_by_role("navigation", name="How many there are")).to_contain_text("2 nodes")
    row = page.get_by_role("region", name="Nodes").get_by_role("row").filter(has_text="n1")
    expect(row.get_by_role("img", name=re.compile(r"^memory: .* given, .* used"))).to_be_visible()
    expect(
        row.get_by_role("img", name="cores used on n1 in the last hour: 59 cores now, 59 cores at most")
    ).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^cores used in the last hour: 59 now"))).to_be_visible()
    assert page.evaluate("(box => box.scrollHeight <= box.clientHeight)(document.querySelector('main'))")


def test_a_change_is_seen_without_asking(open_page: Open, fabric: Fabric) -> None:
    page = open_page("workloads?kind=vm")
    expect(page.get_by_role("row").filter(has_text="shown")).to_contain_text("Running")
    try:
        assert fabric.weft("vm", "create", "seen", *TINY).code == 0
        expect(page.get_by_role("row").filter(has_text="seen")).to_contain_text("Running")
    finally:
        fabric.weft("vm", "delete", "seen", "--yes")
    expect(page.get_by_role("row").filter(has_text="seen")).to_have_count(0)


def test_a_button_does_what_its_command_does(open_page: Open, fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "clicked", *TINY).code == 0
    page = open_page("o/vm/default/clicked")
    page.get_by_role("button", name="Stop").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("weft vm stop clicked")
    dialog.get_by_role("button", name=re.compile("^Stop VM")).click()
    assert fabric.weft("wait", "vm/clicked", "--for=phase=Stopped", "--timeout", "20s").code == 0
    expect(page.locator("h1 + .state")).to_have_text("Stopped")
    page.get_by_role("button", name="Start", exact=True).click()  # harmless: no question
    expect(page.locator("h1 + .state")).to_have_text("Running")
    page.get_by_role("link", name="Events").click()
    events = page.locator("main .list")
    expect(events).to_contain_text("Stopped")
    page.get_by_role("button", name="Delete").click()
    confirm = dialog.get_by_role("button", name=re.compile("^Delete VM"))
    expect(confirm).to_be_disabled()
    dialog.get_by_role("textbox").last.fill("clicked")
    confirm.click()
    assert fabric.weft("wait", "vm/clicked", "--for=delete", "--timeout", "20s").code == 0
    assert fabric.weft("vm", "create", "clicked", *TINY, "--hold").code == 0
    expect(page.locator("h1 + .state")).to_have_text("Hold")
    expect(events).to_contain_text("Created")
    expect(events).not_to_contain_text("Stopped")  # of the earlier one of its name
    fabric.weft("vm", "delete", "clicked", "--yes")


def find_fullest(fabric: Fabric) -> str:
    """By memory, whoever's workloads are there now."""
    nodes = json.loads(fabric.weft("node", "list", "-o", "json").out)["items"]
    share = lambda node: node["status"]["allocated_memory"] / node["report"]["memory"]  # noqa: E731
    return str(min(nodes, key=lambda node: (-share(node), node["name"]))["name"])


def test_the_fullest_node_is_first_and_a_drain_is_shown_before_it_begins(open_page: Open, fabric: Fabric) -> None:
    node = json.loads(fabric.weft("vm", "get", "shown", "-o", "json").out)["status"]["node"]
    page = open_page("nodes")
    until(lambda: find_fullest(fabric) in page.locator(".panel").first.inner_text().split())
    page.get_by_role("button", name=f"Drain {node}…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("vm/shown")
    expect(dialog).to_contain_text(f"weft node drain {node}")
    page.evaluate(f"location.hash = '#/o/node/-/{node}'")
    expect(page.get_by_role("region", name="Workloads").get_by_role("link", name="shown")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^memory: .* given"))).to_be_visible()
    page.evaluate("location.hash = '#/nodes'")
    page.get_by_role("button", name=f"Drain {node}…").click()
    try:
        dialog.get_by_role("button", name=f"Drain {node}", exact=True).click()
        until(lambda: json.loads(fabric.weft("node", "get", node, "-o", "json").out)["actions"].get("drain"))
        page.get_by_role("button", name=f"Uncordon {node}").click()
        until(lambda: not json.loads(fabric.weft("node", "get", node, "-o", "json").out)["actions"].get("drain"))
    finally:
        fabric.weft("node", "uncordon", node)


@pytest.mark.parametrize(
    "route",
    mark_long(
        ["o/vm/default/shown/nowhere", "o/vm/default/shown/%ff", "o/vm/default/shown/constructor"],
        "o/vm/default/shown/constructor",
    ),
)
def test_an_address_that_was_cut_or_mistyped_opens_the_object(open_page: Open, route: str) -> None:
    page = open_page(route)
    expect(page.locator("h1")).to_have_text("VM shown")
    expect(page.get_by_role("heading", name="Use in the last hour")).to_be_visible()


def test_a_vm_s_page_has_words_for_what_people_ask_and_no_json(open_page: Open) -> None:
    page = open_page("o/vm/default/shown")
    for heading in ("Why here", "Disks", "Networks", "Snapshots", "Backups", "Newest events"):
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
    expect(page.locator("main")).to_contain_text("after a failure; it has 20 s to shut down")
    expect(page.get_by_role("heading", name="Spec")).to_be_hidden()
    page.get_by_text("All fields").click()
    expect(page.locator("dt", has_text=re.compile("^grace$")).locator("+ dd")).to_have_text("20 s")
    assert not re.search(r"[{\[]|Nothing yet", page.locator("main").inner_text())


def test_a_deployment_s_page_leads_to_its_instances_and_scales_it(open_page: Open, fabric: Fabric) -> None:
    words = ("--vm", *TINY, "--replicas", "2", "--label", "app=shop", "--min-healthy", "0s")
    assert fabric.weft("deployment", "create", "shop", *words).code == 0
    page = open_page("o/deployment/default/shop")
    try:
        instances = page.get_by_role("region", name="Instances")
        expect(instances.get_by_role("link", name="shop-1-0")).to_be_visible()
        revision = page.get_by_role("region", name="Revisions").get_by_role("row").nth(1)
        expect(revision).to_contain_text("tiny")
        expect(page.get_by_text("No service leads to its instances (labels app=shop)")).to_be_visible()
        expect(page.get_by_role("button", name="Pause")).to_be_disabled()  # nothing is rolled out
        page.evaluate(AXE.read_text())
        assert page.evaluate("axe.run()")["violations"] == []
        page.get_by_role("button", name="Update").click()
        expect(page.get_by_role("dialog")).to_contain_text("weft deployment update shop")
        page.evaluate("location.hash = '#/o/deployment/default/shop/events'")
        expect(page.get_by_role("dialog")).to_be_visible()  # a tab is not another page
        page.evaluate("location.hash = '#/nodes'")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.evaluate("location.hash = '#/o/deployment/default/shop'")
        page.get_by_role("button", name="Scale").click()
        page.get_by_role("dialog").get_by_label("replicas").fill("3")
        page.get_by_role("dialog").get_by_role("button", name=re.compile("^Scale")).click()
        expect(instances.get_by_role("link", name="shop-1-2")).to_be_visible()
    finally:
        fabric.weft("deployment", "delete", "shop", "--yes")


def test_sizes_and_times_are_written_for_people(open_page: Open) -> None:
    page = open_page("o/node/-/n1")
    expect(page.locator("dt", has_text=re.compile("^since$")).locator("+ dd")).to_have_text(
        re.compile(r"^(\S+ )?\d\d:\d\d:\d\d$")
    )
    page.goto(f"{page.url.partition('#')[0]}#/k/vms")
    page.get_by_role("button", name="Create VM").click()
    expect(page.get_by_label("memory", exact=False).first).to_have_attribute("placeholder", "default: 256 MiB")


def test_the_storage_page_shows_pools_and_snapshots(open_page: Open) -> None:
    page = open_page("storage")
    pools = page.get_by_role("heading", name="Pools").locator("xpath=../..")
    expect(pools.get_by_role("img").first).to_have_attribute("aria-label", re.compile("given, .* used"))
    page.get_by_role("button", name="snapshots").click()
    expect(page.get_by_text("No snapshots yet.")).to_be_visible()


def test_the_backups_page_says_which_vms_have_none(open_page: Open, fabric: Fabric, tmp_path: Path) -> None:
    page = open_page("backups")
    expect(page.get_by_text(re.compile(r"\d of \d VMs have no backup"))).to_be_visible()
    made = fabric.weft("backuprepository", "create", "safe", "--url", f"dir://{tmp_path}", "--detach")
    assert made.code == 0, made.err
    try:
        assert (
            fabric.weft(
                "backuppolicy", "create", "nightly", "--of", "vm/shown", "--to", "safe", "--schedule", "daily"
            ).code
            == 0
        )
        page.reload()
        row = page.get_by_label("VMs and their newest backups").get_by_role("row").filter(has_text="shown")
        expect(row).to_contain_text("none")
        expect(row.get_by_role("link", name="nightly")).to_be_visible()
        expect(page.get_by_role("heading", name="Repositories").locator("..")).to_contain_text(f"dir://{tmp_path}")
        page.get_by_role("button", name="backup policies").click()
        expect(page.get_by_label("Table").get_by_role("row").filter(has_text="nightly")).to_contain_text("daily")
    finally:
        fabric.weft("backuppolicy", "delete", "nightly", "--yes")
        fabric.weft("backuprepository", "delete", "safe", "--yes")


def test_a_silent_node_s_page_says_what_becomes_of_each_guest(open_page: Open, fabric: Fabric) -> None:
    outlook = "it restarts elsewhere at 2026-12-01 01:31:46 UTC if the node isn't heard of before"

    def silence(route: Route) -> None:
        """As the server answers once the node's heartbeat has run out."""
        answer = route.fetch()
        page = answer.json()
        for vm in page["items"]:
            message = f"node n1 sends no heartbeat; {outlook}"
            vm["status"] |= {"phase": "Unknown", "reason": "nodeLost", "message": message}
        route.fulfill(response=answer, json=page)

    node = json.loads(fabric.weft("get", "vm/shown", "-o", "json").out)["status"]["node"]
    page = open_page(f"o/node/-/{node}")
    row = page.get_by_label("Workloads", exact=True).get_by_role("row").filter(has_text="shown")
    expect(row).to_contain_text("Running")
    expect(page.get_by_role("columnheader", name="OUTLOOK")).to_have_count(0)
    page.route(re.compile("/v1/(projects/[a-z]+/)?vms\\?"), silence)
    page.reload()
    expect(row).to_contain_text(outlook)


def test_the_alerts_page_shows_what_fires_and_silences_it_by_a_click(open_page: Open, fabric: Fabric) -> None:
    evil = "<img src=x onerror=alert(1)>"
    alert = {"labels": {"vm": evil, "node": "n1"}, "value": 0.97, "since": 1_700_000_000.0, "state": "firing"}

    def fire(route: Route) -> None:
        """As a rule is whose condition holds: no node of this fabric has been away so long."""
        answer = route.fetch()
        page = answer.json()
        for rule in page["items"]:
            rule["status"] |= {"state": "firing", "firing": 1, "alerts": [alert]}
        route.fulfill(response=answer, json=page)

    rule = ("alertrule", "create", "busy", "--expr", "weft_node_up == 0", "--severity", "critical")
    assert fabric.weft(*rule).code == 0
    assert fabric.weft("receiver", "create", "hook", "--type", "webhook", "--url", "http://127.0.0.1:1/").code == 0
    assert "this machine itself" in fabric.weft("receiver", "test", "hook").err
    page = open_page("alerts")
    try:
        # This machine's disk may be full, which fires a rule of weft's own.
        expect(page.get_by_text(re.compile("alerts? fires?[.]$"))).to_be_visible()
        expect(page.get_by_label("Firing and pending alerts").get_by_text("busy")).to_have_count(0)
        page.route(re.compile("/v1/(projects/[a-z]+/)?alertrules\\?"), fire)
        page.reload()
        row = page.get_by_label("Firing and pending alerts").get_by_role("row").filter(has_text="busy")
        expect(row).to_contain_text(f"vm={evil} node=n1")
        expect(row).to_contain_text("critical")
        expect(page.get_by_role("heading", name="Receivers").locator("..")).to_contain_text("this machine itself")
        row.get_by_role("button", name="Silence").click()
        expect(row).to_contain_text("silenced")
        (silence,) = json.loads(fabric.weft("silence", "list", "-o", "json").out)["items"]
        assert silence["spec"]["rule"] == "busy" and silence["spec"]["labels"] == alert["labels"]
        row.get_by_role("button", name="Unsilence").click()
        expect(row).to_contain_text("firing")
        page.get_by_role("button", name="receivers").click()
        expect(page.get_by_label("Table").get_by_role("row").filter(has_text="hook")).to_contain_text("webhook")
    finally:
        page.unroute_all(behavior="ignoreErrors")
        for what in ("alertrule/busy", "receiver/hook"):
            fabric.weft("delete", what, "--yes")


def test_a_search_finds_anything(open_page: Open) -> None:
    page = open_page("")
    expect(page.get_by_role("heading", name="Nodes")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("shown")
    option = page.get_by_role("listbox").get_by_role("option").first
    expect(option).to_contain_text("shown")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("VM shown")


def test_a_refused_form_names_the_field_and_makes_nothing(open_page: Open, fabric: Fabric) -> None:
    page = open_page("k/volumes")
    page.get_by_role("button", name="Create volume").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("name", exact=True).fill("wrong")
    dialog.get_by_label(re.compile("^size")).fill("12 parsecs")
    dialog.get_by_role("button", name="Create volume").click()
    expect(dialog.get_by_role("alert")).to_contain_text("spec.size")
    assert fabric.weft("get", "volume", "wrong").code != 0


def test_a_form_is_in_the_order_of_the_task_and_marks_every_wrong_field(open_page: Open, fabric: Fabric) -> None:
    page = open_page("workloads?kind=vm")
    page.get_by_role("button", name="Create VM").click()
    dialog = page.get_by_role("dialog")
    image = dialog.get_by_label("image", exact=False).first
    expect(image.get_by_role("option", name="tiny")).to_be_attached()
    # A field's hint stands beside its name until the lists to choose from are there.
    names = ("name", "project", "image", "cpu", "memory", "disk", "networks", "ssh keys", "node", "volumes")
    expect(dialog.locator("form > .field, form .line > .field")).to_have_text(
        [re.compile(f"^{name}") for name in names], use_inner_text=True
    )
    dialog.get_by_label("name", exact=True).fill("wrong")
    image.select_option("tiny")
    dialog.get_by_label(re.compile("^memory")).first.fill("1 parsec")
    dialog.get_by_label(re.compile("^cpu")).first.fill("many")
    dialog.get_by_label(re.compile("^ssh keys")).fill("none")
    dialog.get_by_role("button", name="Create VM").click()
    expect(dialog.get_by_role("alert")).to_contain_text("3 fields are wrong")
    for field in ("cpu", "memory", "ssh keys"):
        expect(dialog.get_by_label(re.compile(f"^{field}")).first).to_have_attribute("aria-invalid", "true")
    assert page.evaluate("document.activeElement.getAttribute('aria-invalid')") == "true"
    page.evaluate(AXE.read_text())
    assert page.evaluate("axe.run()")["violations"] == []
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert fabric.weft("get", "vm", "wrong").code != 0


def test_equal_names_of_two_projects_are_told_apart_and_ended_tasks_are_no_guests(
    open_page: Open, fabric: Fabric
) -> None:
    assert fabric.weft("project", "create", "lab").code == 0
    try:
        guest = {"kind": "container", "project": "default", "spec": {"networks": ["default"]}}
        guests = [{**guest, "uid": name, "name": name, "status": {"ended": name == "task"}} for name in ("task", "app")]
        page = open_page("nowhere")
        page.route(re.compile(r"/containers\?"), lambda route: route.fulfill(json={"items": guests}))
        page.evaluate("location.hash = '#/networks'")
        drawing = page.get_by_role("group", name=re.compile("networks with"))
        expect(drawing.get_by_role("link", name="app", exact=False).first).to_be_visible()
        expect(drawing.get_by_text("task")).to_have_count(0)
        table = page.get_by_role("region", name="Table")
        row = table.get_by_role("row").filter(has_text="lab")
        expect(row).to_contain_text("default")
        expect(page.get_by_role("columnheader", name="PROJECT")).to_be_visible()
        page.evaluate("location.hash = '#/nodes'")
        node = table.get_by_role("row").filter(has_text="n1")
        expect(node.get_by_role("img", name=re.compile("^memory: .* given, .* used"))).to_be_visible()
        assert not re.search("[\u2588-\u258f]", table.inner_text())
    finally:
        fabric.weft("network", "delete", "default", "-p", "lab", "--yes")
        fabric.weft("project", "delete", "lab", "--yes")


@pytest.mark.parametrize("width", [390, 1024])
def test_pages_and_their_tables_do_not_scroll_sideways(open_page: Open, width: int) -> None:
    page = open_page("")
    page.set_viewport_size({"width": width, "height": 800})
    for route in ("", "workloads", "nodes", "o/vm/default/shown"):
        page.goto(f"{page.url.partition('#')[0]}#/{route}")
        expect(page.locator("main h1").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), route
        if route in ("workloads", "nodes"):
            expect(page.get_by_role("button", name=re.compile("more columns"))).to_be_visible()
            box = page.get_by_role("region", name="Table")
            until(lambda box=box: box.evaluate("box => box.scrollWidth <= box.clientWidth"))  # type: ignore[misc]
    if width < 900:
        page.get_by_role("button", name="Pages").click()
    page.get_by_role("link", name="Storage").click()
    expect(page.locator("h1")).to_have_text("Storage")


def test_a_table_shows_the_columns_that_hold_something_and_the_others_on_demand(open_page: Open) -> None:
    page = open_page("workloads?kind=vm")
    heads = page.get_by_role("columnheader")
    expect(heads.filter(has_text="NOTE")).to_have_count(1)  # one VM has one
    expect(heads.filter(has_text="PUBLISH")).to_have_count(0)
    page.get_by_role("button", name=re.compile("more columns")).click()
    expect(heads.filter(has_text="PUBLISH")).to_have_count(1)
    page.get_by_role("button", name="fewer columns").click()
    expect(heads.filter(has_text="PUBLISH")).to_have_count(0)


@pytest.mark.long
def test_the_page_is_built_twice_to_the_same_bytes(tmp_path: Path) -> None:
    import subprocess  # noqa: PLC0415

    sums = []
    for name in ("a", "b"):
        subprocess.run(["node", str(ROOT / "web" / "build.mjs"), str(tmp_path / name)], check=True, capture_output=True)
        sums.append({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()})
    assert sums[0] == sums[1] and any(name.startswith("app-") for name in sums[0])
