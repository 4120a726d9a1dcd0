"""Programs in a mount namespace of their own, made ready by a thread that nobody else uses.

A thread may leave the process's mount namespace for itself; programs that it starts come along. So a root is mounted without
another program in between, it is never seen in the node's own namespace, and it goes with the last process in it.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Collection, Iterable, Sequence
from typing import IO

import msgspec

from weft.drivers.linux.mounts import Mount, read_mounts
from weft.drivers.linux.namespace_thread import leave_mounts, run_in_own_thread
from weft.objects.errors import DriverFailed


class Finished(msgspec.Struct, frozen=True):
    status: int
    out: bytes
    err: str


def find_hidden(mounts: Iterable[Mount]) -> list[str]:
    """Pure. Mount points of version 2 beside version 1: crun before 1.9 refuses to run where it sees both. One that stands there
    twice is covered: its /sys has another over it."""
    kinds: dict[str, list[str]] = {"cgroup": [], "cgroup2": []}
    for mount in mounts:
        kinds.setdefault(mount.kind, []).append(mount.point)
    return list(dict.fromkeys(kinds["cgroup2"])) if kinds["cgroup"] else []


def read_hidden() -> list[str]:
    return find_hidden(read_mounts())


async def run_in_mount_namespace(
    words: Sequence[str], hidden: Collection[str], *, timeout_seconds: float, given: bytes = b""
) -> Finished:
    """Run a program that ends soon. Raises DriverFailed for one that doesn't, or isn't there."""

    def work() -> Finished:
        leave_mounts(hidden)
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
        ) as process:
            try:
                out, err = process.communicate(given, timeout_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Finished(process.returncode, out, err.decode(errors="replace").strip())

    try:
        return await run_in_own_thread(work)
    except subprocess.TimeoutExpired:
        raise DriverFailed(f"{words[0]} didn't end within {timeout_seconds:.0f} s") from None
    except OSError as error:
        raise DriverFailed(f"{words[0]}: {error.strerror or error}") from error


async def spawn_in_mount_namespace(
    words: Sequence[str],
    hidden: Collection[str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a program that runs on; cancelled, it doesn't. Raises OSError."""
    started: list[subprocess.Popen[bytes]] = []

    def work() -> None:
        leave_mounts(hidden)
        started.append(
            subprocess.Popen(words, stdin=stdin, stdout=stdout, stderr=stderr, cwd="/", start_new_session=True)
        )

    try:
        await run_in_own_thread(work)
    except asyncio.CancelledError:
        for process in started:
            process.kill()
            process.wait()
        raise
    return started[0]
