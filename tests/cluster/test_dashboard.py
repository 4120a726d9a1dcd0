"""A browser, by `weft dashboard`, at a real guest: its terminal, its log, its samples as they are taken."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.cluster.cluster import WEFT, Cluster

pytestmark = pytest.mark.host
PATIENCE_MS = 30_000


def test_a_browser_reaches_a_guest(cluster: Cluster) -> None:
    chromium = shutil.which("chromium-headless-shell")
    if chromium is None:
        pytest.skip("needs chromium-headless-shell: tools/install tests")
    words = [WEFT, "dashboard", "network", "--port", "0", "--no-open"]
    relay = subprocess.Popen(words, cwd=cluster.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert relay.stdout is not None
        link = relay.stdout.readline().strip()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            expect.set_options(timeout=PATIENCE_MS)
            page.set_default_timeout(PATIENCE_MS)
            page.goto(link)
            expect(page.get_by_role("heading", name="Networks")).to_be_visible()
            expect(page.locator("svg.topology text").filter(has_text="hello").first).to_be_visible()
            page.get_by_role("navigation", name="Pages").get_by_role("link", name="Storage").click()
            expect(page.get_by_text(re.compile(r"^[0-9.]+ GiB / [0-9.]+ GiB, [0-9.]+ GiB used$")).first).to_be_visible()
            page.goto(f"{link.partition('/?')[0]}/#/o/vm/default/hello/exec")
            rows = page.locator(".xterm-rows")
            expect(rows).to_contain_text("#")
            page.keyboard.type("echo $((6 * 7))is\n")
            expect(rows).to_contain_text("42is")
            page.get_by_role("navigation", name="Parts of hello").get_by_role("link", name="Logs").click()
            expect(page.locator("pre.log")).to_contain_text("BusyBox")
            page.get_by_role("link", name="Metrics", exact=True).click()
            for name in ("cpu", "memory.resident", "nic0.received", "disk.root.read"):
                expect(page.locator("figure").filter(has_text=name).first).to_be_visible()
            browser.close()
    finally:
        relay.terminate()
        relay.communicate(timeout=15)
