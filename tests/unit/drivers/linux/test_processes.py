"""Processes are found by their command lines, whatever they are just about."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from weft.drivers.linux import processes


def test_one_that_starts_one_program_after_another_is_never_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two programs a process has no command line for a moment."""
    script = tmp_path / "chain"
    script.write_text('[ "$1" -gt 0 ] && exec sh "$0" $(($1 - 1)) marked\n')
    with subprocess.Popen(["sh", str(script), "150", "marked"]) as process:
        monkeypatch.setattr(os, "listdir", lambda _: [str(process.pid)])  # looks at nobody else meanwhile
        looks = 0
        while True:
            found = [pid for pid, words in processes.list_arguments() if "marked" in words]
            if process.poll() is not None:
                break
            assert found == [process.pid]
            looks += 1
    assert looks > 100


def test_the_kernels_own_and_one_that_has_ended_have_no_command_line() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.pid not in dict(processes.list_arguments())
