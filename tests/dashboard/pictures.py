"""``python -m tests.dashboard.pictures``: the guide's pictures of the dashboard, taken of the cluster that make up started here."""

from __future__ import annotations

import shutil
import subprocess

from playwright.sync_api import sync_playwright

from tests.cluster.cluster import ROOT
from tests.commands import WEFT

FOLDER = ROOT / "docs" / "guide"
PICTURES = {
    "dashboard-overview": ("", 3000),
    "dashboard-vm": ("o/vm/default/hello", 3000),
    "dashboard-why": ("o/vm/default/large/why", 3000),
}
GUESTS = (
    ("vm", "create", "web", "--image", "tiny", "--cpu", "1", "--memory", "128M"),
    ("vm", "create", "large", "--image", "tiny", "--cpu", "64", "--memory", "900G", "--detach"),
)


def main() -> None:
    for words in GUESTS:
        subprocess.run([WEFT, *words], cwd=ROOT, check=True)
    words = [WEFT, "dashboard", "--port", "0", "--no-open"]
    relay = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert relay.stdout is not None
        link = relay.stdout.readline().strip()
        with sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu"]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium-headless-shell"), args=flags)
            page = browser.new_page(viewport={"width": 1200, "height": 720}, color_scheme="light")
            page.goto(link)
            for name, (route, wait_ms) in PICTURES.items():
                page.goto(f"{link.partition('/?')[0]}/#/{route}")
                page.wait_for_timeout(wait_ms)
                page.screenshot(path=FOLDER / f"{name}.png")
            browser.close()
    finally:
        relay.terminate()
        relay.wait()
        for words in GUESTS:
            subprocess.run([WEFT, "vm", "delete", words[2], "--yes"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
