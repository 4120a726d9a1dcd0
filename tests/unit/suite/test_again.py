"""A test that fails is run once more from a clean start, and named at the end: tests/again.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CONFTEST = """
import pathlib
from tests import again
again.KEPT = pathlib.Path("kept.txt")
def pytest_configure(config):
    config.pluginmanager.register(again.Again(2))
"""
TESTS = """
import pytest
tries, made = [], []
@pytest.fixture(scope="module")
def shared():
    made.append("made")
    yield list(made)
    made.append("gone")
def test_falls_once_and_finds_what_its_file_shares_made_again(shared):
    tries.append(1)
    assert len(tries) == 2, "it came too late"
    assert shared == ["made", "gone", "made"]
def test_goes_on_with_it(shared):
    assert shared == ["made", "gone", "made"] and made == shared
"""


def run(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_them.py").write_text(tests)
    words = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(folder), "-p", "no:cacheprovider", "test_them.py"]
    here = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(words, cwd=folder, env=here, capture_output=True, text=True, timeout=60)


def test_what_a_file_shares_is_made_again_for_the_second_try_and_both_tries_are_told(tmp_path: Path) -> None:
    for before in (0, 1):
        done = run(tmp_path, TESTS)
        assert done.returncode == 0, done.stdout
        name = "test_them.py::test_falls_once_and_finds_what_its_file_shares_made_again"
        assert f"{name}  AssertionError: it came too late (call)" in done.stdout.splitlines()
        assert "2 passed, 1 run again" in done.stdout
        assert done.stdout.count("mend it") == before


def test_one_that_fails_twice_fails_the_run_and_so_do_many_that_fail_once(tmp_path: Path) -> None:
    always = run(tmp_path, "def test_it():\n    assert False\n")
    assert always.returncode == 1 and "1 failed, 1 run again" in always.stdout
    many = "import pytest\ntries = []\n@pytest.mark.parametrize('n', range(4))\ndef test_it(n):\n    tries.append(n)\n"
    done = run(tmp_path, many + "    assert tries.count(n) == 2\n")
    assert done.returncode == 1 and "4 passed, 4 run again" in done.stdout
