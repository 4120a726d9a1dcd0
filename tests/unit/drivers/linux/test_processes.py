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
    script.write_text('[ "$1" -eq 0 ] && read -r _ || exec sh "$0" $(($1 - 1)) marked\n')
    with subprocess.Popen(["sh", str(script), "150", "marked"], stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(os, "listdir", lambda _: [str(process.pid)])  # looks at nobody else meanwhile
        looks, words = 0, []
        while words[2:] != ["0", "marked"]:  # the last one waits: one that is just ending has no command line, either
            found = dict(processes.list_arguments())
            assert list(found) == [process.pid]
            words = found[process.pid]
            looks += 1
        process.communicate(b"\n")
    assert looks > 100


def test_the_kernels_own_and_one_that_has_ended_have_no_command_line() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.pid not in dict(processes.list_arguments())


def test_a_child_counts_until_it_is_waited_for() -> None:
    script = "sleep 60 & echo up; read -r _; kill $!; wait; echo alone; read -r _"
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"up\n" and processes.has_children(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"alone\n" and not processes.has_children(process.pid)
        process.communicate(b"\n")
    assert not processes.has_children(process.pid)
