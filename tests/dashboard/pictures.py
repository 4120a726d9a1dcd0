"""``python -m tests.dashboard.pictures [FOLDER]``: the guide's pictures of the dashboard, of a shop that is made for them."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, Page, sync_playwright

from tests.cluster.cluster import ROOT
from tests.dashboard.showcase import furnish, tell_past
from tests.scenario.cli_lab import Fabric, start_fabric

GUIDE = ROOT / "docs" / "guide"
MOST_BYTES = 60_000
WIDTH, HEIGHT = 1200, 720
QUALITIES = (0.8, 0.65, 0.5)  # the first with which a picture is small enough
LATER = 45 * 60  # seconds: so long the shop has been open
# Of a picture as a data URL, the same as WebP.
SMALLER = """async ([url, quality]) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext('2d').drawImage(image, 0, 0);
  return canvas.toDataURL('image/webp', quality).split(',')[1];
}"""


class Picture(NamedTuple):
    route: str
    shows: str  # words that are on the page once it is there
    press: Callable[[Page], None] | None = None
    dark: bool = False


def _fill_form(page: Page) -> None:
    page.get_by_role("button", name="Create VM").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("name", exact=True).fill("reports")
    dialog.get_by_label("memory").first.fill("2 parsecs")
    dialog.get_by_label("ssh keys").fill("none")
    dialog.get_by_role("button", name="Create VM").click()
    dialog.get_by_text("fields are wrong").wait_for()


PICTURES = {
    "dashboard-overview": Picture("", "Used in the last hour"),
    "dashboard-workloads": Picture("workloads", "training"),
    "dashboard-vm": Picture("o/vm/default/db", "before-update"),
    "dashboard-why": Picture("o/vm/default/training/why", "insufficientResources"),
    "dashboard-deployment": Picture("o/deployment/default/web", "web-1-2"),
    "dashboard-create": Picture("workloads?kind=vm", "training", _fill_form),
    "dashboard-nodes": Picture("nodes", "2 workloads", dark=True),
    "dashboard-networks": Picture("networks", "10.41.0.0/24"),
    "dashboard-logs": Picture(
        "logs?by=name&of=vm/default/db,vm/default/cache,vm/default/mail&since=1h", "evicted", dark=True
    ),
    "dashboard-metrics": Picture("o/vm/default/db/metrics", "nic0"),
}


def take_all(browser: Browser, link: str, folder: Path) -> None:
    """Take each picture into ``folder``, as NAME.webp."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
    context.new_page().goto(link)
    state = context.storage_state()
    address = link.partition("/?")[0]
    for name, picture in PICTURES.items():
        context = browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT},
            color_scheme="dark" if picture.dark else "light",
            reduced_motion="reduce",
            storage_state=state,
        )
        page = context.new_page()
        page.clock.set_fixed_time(time.time() + LATER)
        tell_past(page)
        page.goto(f"{address}/#/{picture.route}")
        page.get_by_text(picture.shows).first.wait_for()
        if picture.press:
            picture.press(page)
        page.wait_for_timeout(1000)  # charts
        url = f"data:image/png;base64,{base64.b64encode(page.screenshot()).decode()}"
        (folder / f"{name}.webp").write_bytes(_shrink(context.new_page(), url))
        context.close()


def _shrink(page: Page, url: str) -> bytes:
    made = b""
    for quality in QUALITIES:
        made = base64.b64decode(page.evaluate(SMALLER, [url, quality]))
        if len(made) <= MOST_BYTES:
            break
    return made


@contextmanager
def open_shop() -> Iterator[tuple[Fabric, str]]:
    """The shop's fabric, and the link that signs a browser in."""
    with start_fabric() as fabric:
        furnish(fabric)
        relay = fabric.spawn("dashboard", "--port", "0", "--no-open", stderr=subprocess.DEVNULL)
        try:
            assert relay.stdout is not None
            yield fabric, relay.stdout.readline().strip()
        finally:
            relay.terminate()
            relay.communicate(timeout=15)


def main(folder: Path) -> None:
    with open_shop() as (_, link), sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium-headless-shell"), args=flags)
        take_all(browser, link, folder)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else GUIDE)
