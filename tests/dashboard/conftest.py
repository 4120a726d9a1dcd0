"""The page in a real browser, beside a real server and two nodes whose guests only pretend."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.scenario.cli_lab import Fabric, start_fabric

CHROMIUM = shutil.which("chromium-headless-shell")
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


class Relay(NamedTuple):
    """A `weft dashboard` that runs: the page's address, and the cookies of a browser that used its link."""

    address: str
    state: Any


@pytest.fixture(scope="package")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    shared = tmp_path_factory.mktemp("shared")
    with start_fabric(agent_options=("--pool", f"shared={shared}")) as fabric:
        yield fabric


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium-headless-shell: tools/install tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def relay(fabric: Fabric, chromium: Browser) -> Iterator[Relay]:
    process = fabric.spawn("dashboard", "--port", "0", "--no-open", stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        context = chromium.new_context()
        context.new_page().goto(link)
        yield Relay(link.partition("/?")[0], context.storage_state())
        context.close()
    finally:
        process.terminate()
        process.communicate(timeout=15)


class Faults:
    """What a page must never do: say an error, run what it shows, or ask another host."""

    def __init__(self, page: Page, address: str) -> None:
        self.found: list[str] = []
        page.on("pageerror", lambda error: self.found.append(str(error)))
        page.on("dialog", lambda dialog: self.found.append(f"it opened {dialog.message!r}"))
        page.on("request", lambda request: self._check(request.url, address))
        page.on("console", lambda message: self._hear(message.type, message.text))

    def _hear(self, type_: str, text: str) -> None:
        if type_ == "error" and "Failed to load resource" not in text:  # a refusal is an answer
            self.found.append(text)

    def _check(self, url: str, address: str) -> None:
        if not url.startswith((address, address.replace("http", "ws", 1), "data:", "blob:")):
            self.found.append(f"it asked {url}")


@pytest.fixture
def open_page(chromium: Browser, relay: Relay) -> Iterator[Callable[..., Page]]:
    """Open a page of the dashboard, signed in; whatever was wrong with one fails the test."""
    contexts, faults = [], []

    def open_(route: str = "", **more: Any) -> Page:
        context = chromium.new_context(storage_state=relay.state, viewport={"width": 1280, "height": 800}, **more)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        faults.append(Faults(page, relay.address))
        page.goto(f"{relay.address}/#/{route}")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [fault for each in faults for fault in each.found] == []
