"""How a browser comes to the page of `weft dashboard`: the file that a desktop opens, and the link's project."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.dashboard.conftest import Relay
from tests.scenario.cli_lab import Fabric

PATIENCE_SECONDS = 30.0


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A desktop that only notes what it is asked to open."""
    opened, program = tmp_path / "opened", tmp_path / "xdg-open"
    program.write_text(f'#!/bin/sh\necho "$@" > {opened}.part && mv {opened}.part {opened}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return opened


def test_a_desktop_opens_a_file_of_the_user_and_never_sees_the_link(
    fabric: Fabric, chromium: Browser, desktop: Path
) -> None:
    assert fabric.weft("project", "create", "linked").code == 0
    process = fabric.spawn("dashboard", "network", "--port", "0", "-p", "linked", stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        file = Path(wait_for(desktop))
        assert "key=" not in str(file) and file.stat().st_uid == os.getuid()
        assert not stat.S_IMODE(file.parent.stat().st_mode) & 0o077
        context = chromium.new_context()
        page = context.new_page()
        page.goto(file.as_uri())
        page.wait_for_url(f"{link.partition('/?')[0]}/#/networks?project=linked")
        expect(page.get_by_role("heading", name="Networks")).to_be_visible()
        expect(page.get_by_label("Project", exact=True)).to_have_value("linked")
        context.close()
    finally:
        process.terminate()
        process.communicate(timeout=15)
    assert not file.exists()


def test_a_project_that_is_not_there_is_refused(fabric: Fabric) -> None:
    answer = fabric.weft("dashboard", "--port", "0", "--no-open", "-p", "nope")
    assert answer.code != 0 and 'project "nope"' in answer.err


def test_a_head_that_is_too_long_is_answered(relay: Relay) -> None:
    host, port = relay.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 70_000)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"longer than 32 KiB" in answer


def test_what_is_refused_is_words_in_a_window_and_data_for_a_program(relay: Relay) -> None:
    host, port = relay.address.removeprefix("http://").split(":")
    said = {}
    for mode in ("navigate", "cors"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nSec-Fetch-Mode: {mode}\r\n\r\n"
            connection.sendall(head.encode())
            said[mode] = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    assert all(one.startswith("HTTP/1.1 401 ") for one in said.values())
    assert "<p>this browser isn" in said["navigate"] and "<p>open the link that" in said["navigate"]
    assert "<script>" not in said["navigate"]  # it would be refused again
    assert json.loads(said["cors"].partition("\r\n\r\n")[2])["reason"] == "notAuthenticated"


def wait_for(file: Path) -> str:
    until = time.monotonic() + PATIENCE_SECONDS
    while not file.exists():
        assert time.monotonic() < until, f"{file} was not written"
        time.sleep(0.05)
    return file.read_text().strip()
