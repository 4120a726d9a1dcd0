"""The command line runs with its own few packages; a process whose packages are missing names them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULES = {"pyyaml": "yaml"}  # by package, where the names differ


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A folder with weft and what ``pip install weft`` brings, and nothing else."""
    folder = tmp_path_factory.mktemp("client")
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for package in ("weft", *(re.split(r"[<>=]", one)[0] for one in named)):
        origin = importlib.util.find_spec(MODULES.get(package, package)).origin
        assert origin is not None
        found = Path(origin).parent if Path(origin).name == "__init__.py" else Path(origin)
        (folder / found.name).symlink_to(found)
    return folder


def run_weft(packages: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(packages), "HOME": str(packages), "PATH": os.defpath, **more}
    argv = [sys.executable, "-S", "-c", "from weft.launch.entry import main; main()", *words]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "words", [("vm", "--help"), ("help", "exit-codes"), ("completion", "bash"), ("context", "list")]
)
def test_the_command_line_needs_only_the_packages_of_a_client(packages, words):
    run = run_weft(packages, *words)
    assert run.returncode == 0, run.stderr


def test_a_command_asks_a_server_with_the_packages_of_a_client(packages):
    run = run_weft(packages, "vm", "list", WEFT_SERVER="https://127.0.0.1:1", WEFT_TOKEN="made-up")
    assert "127.0.0.1:1" in run.stderr and "Traceback" not in run.stderr, run.stderr


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (("server", "--state", "state"), "argon2|cryptography|numpy|uvloop|httptools|jwt", "server"),
        (("agent", "--state", "state"), "httptools|zstandard", "agent"),
        (("simulate",), "numpy", "server"),
    ],
)
def test_a_process_whose_packages_are_missing_names_them(packages, words, package, extra):
    run = run_weft(packages, *words)
    assert run.returncode == 1
    assert re.search(f"^error: weft {words[0]} needs the Python package ({package}), which isn't installed", run.stderr)
    assert f"pip install 'weft[{extra}]'" in run.stderr
