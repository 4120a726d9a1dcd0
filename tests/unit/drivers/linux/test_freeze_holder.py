"""The program that holds file systems frozen, here without any: what it says, and that it ends in silence without its parent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from weft.drivers.linux import freeze_holder


@pytest.mark.parametrize("lives", [True, False])
def test_it_ends_with_its_parent_and_says_nothing_to_nobody(lives: bool) -> None:
    program = subprocess.Popen(
        [sys.executable, "-ISB", freeze_holder.__file__, "60"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdin and program.stdout and program.stderr
    assert [program.stdout.readline(), program.stdout.readline()] == [b"freezing\n", b"frozen\n"]
    if not lives:
        program.stdout.close()
    program.stdin.close()
    assert program.wait(30) == 0
    assert program.stderr.read() == b""
    if lives:
        assert program.stdout.read() == b"thawed\n"
        program.stdout.close()
    program.stderr.close()
