"""Folders in memory of test runs: those of processes that were killed go when the next run begins."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.shelf import sweep_shelf


def test_only_folders_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    kept = [f"weft-{os.getpid()}-a", "weft-tests-b", "weft-x-c", f"other-{gone.pid}-d"]
    for name in (*kept, f"weft-{gone.pid}-e"):
        (tmp_path / name / "t").mkdir(parents=True)
    sweep_shelf(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
