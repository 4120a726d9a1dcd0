"""The processes that read strangers' bytes: none of them has rights, and none outlives the process that started it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from weft.scheduler.own_policies.wire import PolicyLine

PARENT = """
import os, subprocess, sys
argv = [str(os.getpid()) if word == "PARENT" else word for word in sys.argv[1:]]
worker = subprocess.Popen([sys.executable, "-P", "-m", *argv], close_fds=False)
print(worker.pid, flush=True)
worker.wait()
"""
IMAGES = "weft.drivers.image.oci"


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def read_status(pid: int) -> dict[str, str]:
    """Of a process; empty once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    found = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {} if found["State"].startswith("Z") else found


def find_below(pid: int) -> list[int]:
    """A process and all that it has started."""
    below = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(one for child in below for one in find_below(child))]


@contextmanager
def start(*argv: str, **options: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that starts a worker; the worker's pid."""
    command = [sys.executable, "-c", PARENT, *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def check(process: subprocess.Popen[str], worker: int) -> None:
    """One process below the worker, or itself, has dropped its rights, and all end with ``process``."""

    def find_humble() -> list[int]:
        facts = {pid: read_status(pid) for pid in find_below(worker)}
        return [
            pid
            for pid, fact in facts.items()
            if (fact.get("NoNewPrivs"), fact.get("Seccomp")) == ("1", "2")  # it reaches no other process of its user
            and fact["CapEff"].strip("0") == ""
            and "0" not in fact["Uid"].split()
        ]

    until(find_humble)
    everyone = find_below(worker)
    process.kill()
    until(lambda: not any(map(read_status, everyone)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to drop")
def test_each_worker_has_no_rights_and_ends_with_its_parent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with start("weft.controllers.image.download", "PARENT", url, "9", "9", "60", "127.0.0.1") as started:
            check(*started)
    reading, writing = os.pipe()  # whose other end stays open when the parent ends
    with start(f"{IMAGES}.fetch.worker", "PARENT", stdin=reading) as started:
        check(*started)
    bounds = json.dumps({"bytes": 1 << 20, "entries": 9, "ratio": 9})
    with start(f"{IMAGES}.unpack.worker", "PARENT", str(tmp_path), "zstd", bounds, stdin=reading) as started:
        check(*started)
    os.close(reading)
    os.close(writing)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        with start("weft.scheduler.own_policies.worker", str(fd), "PARENT", pass_fds=[fd]) as started:
            PolicyLine(ours).send({"name": "p", "source": "def score(table, request, occasion): ..."})
            check(*started)


@pytest.mark.parametrize(
    "argv",
    [
        ["weft.controllers.image.download", "1", "http://127.0.0.1:9/", "9", "9", "60"],
        [f"{IMAGES}.fetch.worker", "1"],
        [f"{IMAGES}.unpack.worker", "1", "/", "zstd", "{}"],
    ],
)
def test_a_worker_whose_parent_has_ended_meanwhile_does_not_begin(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", *argv], stdin=subprocess.DEVNULL, capture_output=True, timeout=20
    )
    assert b"the process that started this one has ended" in done.stderr
