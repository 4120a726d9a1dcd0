"""Bytes through the command: nothing is lost, changed, mixed up or held back, and it ends as the far end did."""

from __future__ import annotations

import hashlib
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import cast

import msgspec
import pytest
from tests.scenario.stream_far_end import far_end

from weft.cli.stream.client import Stream
from weft.protocol.frames import encode_exit

_RUN = """
import sys, msgspec
from weft.cli.stream.client import Stream, dial
from weft.client.context import Context
from weft.objects.errors import WeftError
context = msgspec.json.decode(sys.argv[1], type=Context)
try:
    with dial(context, msgspec.json.decode(sys.argv[2])) as sock:
        sys.exit(Stream(sock).run(0))
except WeftError as problem:
    sys.exit(f"error: {problem.message}")
"""


def stream(state: Path, argv: list[str], stdin: bytes | None) -> subprocess.CompletedProcess[bytes]:
    """What a process that carries the stream of ``argv`` prints and ends with."""
    with far_end(state / "far", argv) as (context, ticket):
        given = [msgspec.json.encode(context).decode(), msgspec.json.encode(ticket).decode()]
        source = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run([sys.executable, "-c", _RUN, *given], capture_output=True, timeout=60, **source)  # type: ignore[call-overload, no-any-return]


def test_ten_megabytes_go_both_ways_unchanged(tmp_path: Path) -> None:
    data = os.urandom(10 * 1024 * 1024)
    done = stream(tmp_path, ["cat"], data)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_output_and_errors_stay_apart_and_the_exit_code_comes_through(tmp_path: Path) -> None:
    done = stream(tmp_path, ["sh", "-c", "echo out; echo err >&2; exit 42"], None)
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 42)


def test_a_command_ended_by_a_signal_gives_what_a_shell_would(tmp_path: Path) -> None:
    assert stream(tmp_path, ["sh", "-c", "kill -9 $$"], None).returncode == 137


def test_a_command_that_reads_nothing_ends_although_the_input_goes_on(tmp_path: Path) -> None:
    with far_end(tmp_path / "far", ["true"]) as (context, ticket):
        given = [msgspec.json.encode(context).decode(), msgspec.json.encode(ticket).decode()]
        process = subprocess.Popen([sys.executable, "-c", _RUN, *given], stdin=subprocess.PIPE)
        assert process.wait(30) == 0


def test_a_stream_that_is_cut_is_an_error_not_an_end(tmp_path: Path) -> None:
    done = stream(tmp_path, [], None)
    assert done.returncode == 1
    assert b"was lost before the end" in done.stderr


@pytest.mark.parametrize("size", [0, 1, 65536, 65537])
def test_any_size_of_input_arrives_whole(tmp_path: Path, size: int) -> None:
    done = stream(tmp_path, ["wc", "-c"], b"x" * size)
    assert done.stdout.split() == [str(size).encode()]


class HungUp:
    """A far end that said its last words and takes nothing any more."""

    def __init__(self) -> None:
        self._words = encode_exit(3)

    def getpeername(self) -> tuple[str, int]:
        return "10.0.0.1", 8444

    def setblocking(self, _: bool) -> None: ...

    def send(self, data: memoryview) -> int:
        raise BrokenPipeError

    def recv(self, _: int) -> bytes:
        return self._words


def test_the_last_words_of_a_far_end_that_takes_nothing_more_are_heard() -> None:
    stream = Stream(cast(ssl.SSLSocket, HungUp()))
    stream.send(b"more input")
    assert stream.run(None) == 3
