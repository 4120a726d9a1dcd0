"""A test that fails shows the ends of the logs of what it used: tests/logs.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.logs import END_BYTES, MOST_LOGS, find_logs, read_end

ROOT = Path(__file__).resolve().parents[3]
CONFTEST = """
from tests import logs
def pytest_configure(config):
    config.pluginmanager.register(logs)
"""
TESTS = """
import os, pathlib, pytest
class Lab:
    folder = pathlib.Path.cwd() / "lab"
@pytest.fixture
def lab():
    (Lab.folder / "n1").mkdir(parents=True)
    (Lab.folder / "n1" / "old.log").write_text("long ago")
    os.utime(Lab.folder / "n1" / "old.log", (1, 1))
    return Lab()
def test_that_fails(lab):
    (Lab.folder / "n1" / "agent.log").write_text("the guest was lost")
    assert False
"""


def test_a_test_that_fails_shows_what_its_lab_logged_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_them.py").write_text(TESTS)
    words = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", "test_them.py"]
    here = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=60)
    assert "agent.log" in done.stdout and "the guest was lost" in done.stdout, done.stdout
    assert "long ago" not in done.stdout


def test_the_newest_logs_are_taken_without_what_guests_have(tmp_path: Path) -> None:
    class Cluster:
        log_folders = (tmp_path / "state", tmp_path / "run")

    for number in range(MOST_LOGS + 3):
        path = tmp_path / "state" / f"{number}.log"
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        os.utime(path, (1000 + number, 1000 + number))
    inside = tmp_path / "run" / "rootfs" / "guests.log"
    inside.parent.mkdir(parents=True)
    inside.write_text("x")
    found = find_logs([Cluster(), object()], began=1001)
    assert [path.name for path in found] == [f"{number}.log" for number in range(MOST_LOGS + 2, 2, -1)]


def test_of_a_long_log_the_end_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a" * 5000 + b"b" * END_BYTES)
    assert read_end(path) == "b" * END_BYTES
