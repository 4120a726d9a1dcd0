"""The dashboard's page in Chromium beside an API server with 10,000 VMs: its first load, a change until it is seen, and how
smoothly a long table scrolls."""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import BrowserContext, Page, sync_playwright

from benchmarks.fabric_server import WEFT, FabricServer, running_server
from benchmarks.list import VMS, make_vm
from benchmarks.measurement import Figure, Measurement, spread
from weft.client import Client

RUNS = 7
GOAL_BYTES, GOAL_SECONDS, GOAL_SEEN_SECONDS, GOAL_FRAMES = 80_000, 1.0, 0.3, 55.0
SCROLL_SECONDS = 4.0
# Scrolls by a screen's tenth each frame and gives what the browser drew: the time of each frame, milliseconds.
SCROLL = """async (seconds) => {
  const box = document.querySelector('.scroll'), frames = [];
  const until = performance.now() + seconds * 1000;
  await new Promise((done) => {
    const step = (at) => { frames.push(at); box.scrollTop += 80; at < until ? requestAnimationFrame(step) : done(); };
    requestAnimationFrame(step);
  });
  return frames;
}"""
SEEN = """(name) => new Promise((done) => {
  const look = () => [...document.querySelectorAll('tbody tr')].some((row) => row.textContent.includes(name)) && done(Date.now());
  new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
  look();
})"""


@contextmanager
def open_dashboard(server: FabricServer) -> Iterator[tuple[BrowserContext, str]]:
    """A browser that is signed in, and the page's address."""
    words = [WEFT, "--context", str(server.folder / "context.json"), "dashboard", "--port", "0", "--no-open"]
    relay = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert relay.stdout is not None
        link = relay.stdout.readline().strip()
        with sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu"]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium-headless-shell"), args=flags)
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            page = context.new_page()
            page.goto(link)
            page.close()
            yield context, link.partition("/?")[0]
            browser.close()
    finally:
        relay.terminate()
        relay.wait()


def load(context: BrowserContext, address: str) -> tuple[float, int]:
    """Seconds from an empty cache until the overview shows its figures, and the bytes of all answers but the stream's."""
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    sizes: list[float] = []
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    begun = time.perf_counter()
    page.goto(address)
    page.locator(".counts a").first.wait_for()
    took = time.perf_counter() - begun
    page.close()
    return took, int(sum(sizes))


def see(page: Page, client: Client, number: int) -> float:
    """Seconds from before a VM is created until its row is in the document."""
    name = f"aaa-{number}"
    page.evaluate(f"void (window.seen = ({SEEN})('{name}'))")
    begun = time.time()
    client.create({"kind": "vm", "name": name, "spec": {"image": "debian-12", "cpu": 1, "memory": 2**27}})
    return float(page.evaluate("window.seen")) / 1000 - begun


def measure() -> Measurement:
    if shutil.which("chromium-headless-shell") is None:
        raise SystemExit("dashboard_page needs chromium-headless-shell: tools/install tests")
    loads, seen, frames = [], [], []
    with (
        running_server("api", [make_vm(n) for n in range(VMS)]) as server,
        open_dashboard(server) as (context, address),
    ):
        client = Client(server.context)
        client.create({"kind": "image", "name": "debian-12", "spec": {"url": "https://example.invalid/x.img"}})
        for turn in range(RUNS + 1):
            found = load(context, address)
            loads += [found] if turn else []  # the first fills the server's tables
        page = context.new_page()
        page.goto(f"{address}/#/workloads?kind=vm&sort=NAME")
        page.get_by_role("row").nth(20).wait_for()
        seen = [see(page, client, turn) for turn in range(RUNS)]
        times = page.evaluate(SCROLL, SCROLL_SECONDS)
        frames = [after - before for before, after in itertools.pairwise(times)]
        page.get_by_role("row").filter(has_text="web-").nth(5).wait_for()  # where it stopped, rows come
    rate = 1000 / (sum(frames) / len(frames))
    size = max(size for _, size in loads)
    slow = sum(frame > 34 for frame in frames)
    return Measurement(
        "dashboard_page",
        f"The page in Debian's Chromium (software rendering, on the same cores) through weft dashboard; {VMS:,} VMs.",
        [
            Figure(
                "first load, all answers as they are sent",
                f"{size / 1000:.0f} kB",
                goal="≤ 80 kB",
                kept=size <= GOAL_BYTES,
            ),
            Figure(
                "first load until the overview shows its numbers",
                spread([took for took, _ in loads], "ms", 1000),
                goal="≤ 1 s",
                kept=statistics.median(took for took, _ in loads) <= GOAL_SECONDS,
            ),
            Figure(
                "a VM is created → its row is in the document",
                spread(seen, "ms", 1000),
                goal="≤ 300 ms",
                kept=statistics.median(seen) <= GOAL_SEEN_SECONDS,
            ),
            Figure(
                f"scrolling {VMS:,} rows, 4,800 pixels a second",
                f"{rate:.0f} frames/s, {slow} of {len(frames)} above 34 ms",
                goal="60 frames/s",
                kept=rate >= GOAL_FRAMES,
            ),
        ],
    )
