"""Other sites' pages, stolen cookies, hostile words, and a server that goes and comes back: each in a real browser."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, WebSocketRoute, expect

from tests.dashboard.conftest import Relay
from tests.scenario.cli_lab import Fabric
from weft.client import Client
from weft.client.context import read_context

Open = Callable[..., Page]
STAYS = "logs?of=vm/default/stays"
PASSWORD = "a long enough password"
HOSTILE = '<img src=x onerror="window.broken=1">'
READ = "(path) => fetch(path, {headers: {}, credentials: 'include'}).then((r) => r.status, () => 0)"
READ_AS_PAGE = """(path) => fetch(path, {headers: {'X-Weft-CSRF': localStorage.getItem('weft-page-key')}})
    .then((r) => r.status, () => 0)"""
DELETE = """(path) => fetch(path, {method: 'DELETE', credentials: 'include', headers: {'X-Weft-CSRF': '1'}})
    .then((r) => r.status, () => 0)"""


@contextlib.contextmanager
def another_site(body: bytes) -> Iterator[str]:
    """A page at another origin of this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def ann(fabric: Fabric) -> Iterator[str]:
    """A user with a password, who may write in project lab only; and a VM in default, which is none of hers."""
    assert fabric.weft("project", "create", "lab").code == 0
    assert fabric.weft("user", "create", "ann", "--password-stdin", stdin=PASSWORD).code == 0
    assert fabric.weft("rolebinding", "create", "ann-lab", "--role", "editor", "-p", "lab", "--user", "ann").code == 0
    assert fabric.weft("vm", "create", "secret-one", "--image", "tiny", "--label", "of=default").code == 0
    yield "ann"
    for words in (("vm", "secret-one"), ("rolebinding", "ann-lab", "-p", "lab"), ("user", "ann"), ("project", "lab")):
        fabric.weft("delete", *words, "--yes")


def sign_in(chromium: Browser, fabric: Fabric, user: str) -> Page:
    """The page at the API server's own address, whose certificate this browser doesn't know."""
    address = read_context(fabric.context).server
    page = chromium.new_context(ignore_https_errors=True).new_page()
    page.goto(address)
    page.get_by_label("User").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    return page


def test_a_user_of_one_project_sees_nothing_of_another(chromium: Browser, fabric: Fabric, ann: str) -> None:
    page = sign_in(chromium, fabric, ann)
    try:
        for route in (
            "",
            "workloads",
            "workloads?filter=secret",
            "networks",
            "queue",
            "operations",
            "alerts",
            "k/vms",
            "k/nodes",
        ):
            page.goto(f"{page.url.partition('#')[0]}#/{route}")
            expect(page.locator("main h1").first).to_be_visible()
            page.wait_for_timeout(300)
            assert "secret-one" not in page.locator("main").inner_text(), route
        page.goto(f"{page.url.partition('#')[0]}#/queue")
        expect(page.get_by_text("Nothing waits.")).to_be_visible()
        expect(page.get_by_text("No lease and no reservation is accepted.")).to_be_visible()
        page.goto(f"{page.url.partition('#')[0]}#/o/vm/default/secret-one")
        expect(page.get_by_text("can't see vms in default")).to_be_visible()
        assert "of=default" not in page.content()
        page.get_by_role("combobox", name="Search everything").fill("secret-one")
        expect(page.get_by_role("listbox").get_by_role("option")).to_have_text("Nothing has these words.")
    finally:
        page.context.close()


def test_a_cookie_is_worth_nothing_after_its_user_signed_out(chromium: Browser, fabric: Fabric, ann: str) -> None:
    page = sign_in(chromium, fabric, ann)
    address = page.url.partition("#")[0]
    [cookie] = page.context.cookies()
    assert (
        cookie["name"] == "__Host-weft" and cookie["httpOnly"] and cookie["secure"] and cookie["sameSite"] == "Strict"
    )
    assert (
        page.evaluate("document.cookie + JSON.stringify({...localStorage}) + JSON.stringify({...sessionStorage})").find(
            "weft_"
        )
        < 0
    )
    thief = chromium.new_context(ignore_https_errors=True)
    thief.add_cookies([cookie])
    stolen = thief.new_page()
    stolen.goto(address)
    expect(stolen.get_by_role("button", name="Sign in", exact=True)).to_be_visible()  # a cookie alone opens nothing
    key = page.evaluate("localStorage.getItem('weft-page-key')")
    stolen.evaluate("(key) => localStorage.setItem('weft-page-key', key)", key)
    stolen.reload()
    expect(stolen.get_by_role("heading", name="Overview")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
    assert stolen.evaluate(READ_AS_PAGE, "/v1/whoami") == 401
    stolen.reload()
    expect(stolen.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
    thief.close()
    page.context.close()


def test_a_session_that_was_planted_is_not_used(chromium: Browser, fabric: Fabric, ann: str) -> None:
    address = read_context(fabric.context).server
    context = chromium.new_context(ignore_https_errors=True)
    planted = "weft_login-planted_0000000000000000000000000000000000000000000"
    context.add_cookies([{"name": "__Host-weft", "value": planted, "url": address, "secure": True, "httpOnly": True}])
    page = context.new_page()
    page.goto(address)
    page.get_by_label("User").fill(ann)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    [cookie] = [each for each in context.cookies() if each["name"] == "__Host-weft"]
    assert cookie["value"] != planted
    context.close()


def test_pages_of_other_sites_neither_read_nor_write_nor_frame(
    chromium: Browser, relay: Relay, fabric: Fabric, ann: str
) -> None:
    server = read_context(fabric.context).server
    page = sign_in(chromium, fabric, ann)
    context = page.context
    context.add_cookies(relay.state["cookies"])  # signed in at both
    for address in (server, relay.address):
        frame = f'<iframe src="{address}/"></iframe><form method="post" action="{address}/v1/apply"><button>Win</button></form>'
        with another_site(frame.encode()) as site:
            evil = context.new_page()
            evil.goto(site)
            assert evil.evaluate(READ, f"{address}/v1/whoami") == 0
            assert evil.evaluate(DELETE, f"{address}/v1/projects/default/vms/secret-one") == 0
            framed = evil.frames[-1]
            assert framed is evil.main_frame or "Overview" not in framed.content()
            with evil.expect_navigation() as answer:
                evil.get_by_role("button", name="Win").click()
            assert answer.value.status in (401, 403)
            evil.close()
    context.close()
    assert fabric.weft("get", "vm", "secret-one").code == 0


def test_hostile_words_are_text(open_page: Open, fabric: Fabric, relay: Relay) -> None:
    client = Client(read_context(fabric.context))
    name = "w" * 63
    spec = {"image": "tiny", "cpu": 1, "memory": 2**27}
    try:
        client.create({"kind": "vm", "name": name, "labels": {"note": "a" * 60}, "spec": spec})
        page = open_page("workloads")
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
        page.goto(f"{relay.address}/#/o/vm/default/{name}/spec")
        page.get_by_label("Spec as JSON").fill('{"image": "' + HOSTILE.replace('"', '\\"') + '"}')
        page.get_by_role("button", name="Try without changing").click()
        expect(page.get_by_role("alert")).to_be_visible()
        page.goto(f"{relay.address}/#/o/vm/default/{HOSTILE.replace('/', '%2F')}")
        page.goto(f"{relay.address}/#/workloads?filter={HOSTILE}")
        page.get_by_role("combobox", name="Search everything").fill(HOSTILE)
        page.wait_for_timeout(500)
        assert page.evaluate("window.broken") is None
    finally:
        client.delete("vm", name)
        client.close()


@pytest.mark.long
def test_eight_windows_of_one_browser_keep_what_was_seen_and_go_on_when_the_server_is_back(
    open_page: Open, relay: Relay, fabric: Fabric
) -> None:
    assert fabric.weft("vm", "create", "stays", "--image", "tiny").code == 0
    table = "workloads?kind=vm"
    first = open_page(table)
    windows = [first, *(first.context.new_page() for _ in range(7))]  # a browser has six connections to a host
    for window, route in zip(windows, (table, table, STAYS, "", "", STAYS, STAYS, table), strict=True):
        window.goto(f"{relay.address}/#/{route}")
        role, words = {table: ("row", "Running"), STAYS: ("listitem", "follows"), "": ("heading", "Overview")}[route]
        expect(window.get_by_role(role).filter(has_text="stays" if route else words)).to_contain_text(words)
    turns = [window.get_by_text("Updated every 5 s") for window in windows]
    for at, turn in enumerate(turns):
        expect(turn).to_have_count(int(at > 3))
    first.get_by_role("link", name="stays", exact=True).click()
    expect(first.get_by_role("heading", name="Why here")).to_be_visible()
    page, late, opened = windows[1], windows[3], open_page()  # that is a browser of its own, which knows no file yet
    expect(opened.get_by_role("heading", name="Overview")).to_be_visible()
    rows = [window.get_by_role("row").filter(has_text="stays") for window in (page, windows[7])]
    sources = [window.get_by_role("list", name="Sources").get_by_role("listitem") for window in windows[2:7:3]]
    fabric.server.kill()
    fabric.server.wait(15)
    try:
        expect(page.get_by_role("status").filter(has_text="No connection to the server")).to_be_visible()
        for row, source in zip(rows, sources, strict=True):
            expect(row).to_contain_text("Running")
            expect(source).to_contain_text("the page tries again by itself")
        opened.evaluate("location.hash = '#/o/vm/default/stays/flows'")
        expect(opened.get_by_role("alert")).to_contain_text("could not be loaded")
        late.reload()
        expect(late.get_by_text("The page tries again automatically.")).to_be_visible()
    finally:
        fabric.start_server()
    expect(page.get_by_text("No connection to the server")).to_have_count(0)
    for source in sources:
        expect(source).to_contain_text("follows")
    expect(opened.get_by_text("can't see flows")).to_be_visible()  # the node's own answer: its network only pretends
    expect(late.get_by_role("heading", name="Overview")).to_be_visible()
    expect(turns[4]).to_have_count(0)  # it waited longest when a place was left
    expect(turns[3]).to_have_count(1)
    assert fabric.weft("vm", "delete", "stays", "--yes").code == 0
    for row in rows:
        expect(row).to_have_count(0)


def test_a_tab_that_nobody_sees_leaves_its_connection_to_others(open_page: Open, fabric: Fabric) -> None:
    page = open_page("workloads?kind=vm")
    expect(page.get_by_text("No workloads are here yet.")).to_be_visible()
    see = """(is) => { Object.defineProperty(document, 'hidden', {value: !is, configurable: true});
        document.dispatchEvent(new Event('visibilitychange')); }"""
    with page.expect_event("requestfailed", lambda request: "/v1/dashboard/stream" in request.url):
        page.evaluate(see, False)
    assert fabric.weft("vm", "create", "unseen", "--image", "tiny").code == 0
    row = page.get_by_role("row").filter(has_text="unseen")
    expect(row).to_have_count(0)
    page.evaluate(see, True)
    expect(row).to_contain_text("Running")
    assert fabric.weft("vm", "delete", "unseen", "--yes").code == 0


def test_a_log_goes_on_where_its_stream_was_cut(open_page: Open, fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "talks", "--image", "tiny").code == 0
    printed = ["one\n", "one\ntwo\n"]
    opened = list[WebSocketRoute]()

    def answer(socket: WebSocketRoute) -> None:  # guests here print nothing
        opened.append(socket)
        socket.send(printed[len(opened) - 1].encode())

    page = open_page("nowhere")
    page.route_web_socket(lambda url: "/v1/stream" in url, answer)
    page.evaluate("location.hash = '#/o/vm/default/talks/logs'")
    log = page.get_by_label("Log", exact=True)
    expect(log).to_have_text("one\n")
    opened[0].close(code=1012)  # as one that is cut, without words of weft's
    expect(log).to_have_text("one\ntwo\n")
    opened[1].close(code=1000)
    expect(page.get_by_role("status").filter(has_text="The log has ended.")).to_be_visible()
    assert fabric.weft("vm", "delete", "talks", "--yes").code == 0


def test_a_page_of_another_kind_shows_nothing_of_the_one_before(open_page: Open, fabric: Fabric) -> None:
    words = ("--vm", "--image", "tiny", "--cpu", "1", "--memory", "128M", "--replicas", "1", "--min-healthy", "0s")
    assert fabric.weft("deployment", "create", "next", *words).code == 0
    page = open_page("o/deployment/default/next")
    expect(page.get_by_role("heading", name="Revisions")).to_be_visible()  # its part of the page is there
    page.evaluate("location.hash = '#/o/node/-/n1'")
    expect(page.get_by_role("heading", name="Workloads")).to_be_visible()
    page.evaluate("location.hash = '#/o/deployment/default/next'")
    expect(page.get_by_role("heading", name="Revisions")).to_be_visible()
    assert fabric.weft("deployment", "delete", "next", "--yes").code == 0


def test_a_stream_that_falls_silent_is_opened_again(open_page: Open, fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "late", "--image", "tiny").code == 0
    page, asked = open_page("nowhere"), list[Route]()
    page.clock.install()

    def answer(route: Route) -> None:
        asked.append(route)
        if len(asked) > 1:  # the first one is taken by nobody
            route.continue_()

    page.route(re.compile("/v1/dashboard/stream"), answer)
    with page.expect_request(re.compile("/v1/dashboard/stream")):
        page.evaluate("location.hash = '#/workloads?kind=vm'")
    page.clock.fast_forward(26_000)
    page.clock.fast_forward(2_000)
    expect(page.get_by_role("row").filter(has_text="late")).to_contain_text("Running")
    assert fabric.weft("vm", "delete", "late", "--yes").code == 0


def test_no_objects_at_all_is_a_page_too(open_page: Open, fabric: Fabric) -> None:
    page = open_page("k/volumes")
    expect(page.get_by_text("There are no volumes here.")).to_be_visible()
    expect(page.get_by_text("weft volume create NAME")).to_be_visible()
