"""One server keeps one state folder: its lock, which names the process that has it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from weft.objects.errors import InUse

FILE = "server.lock"


@contextmanager
def hold_server(state: Path) -> Iterator[None]:
    """Keep every other server off the folder ``state``, until the end or this process's death. Raises InUse."""
    lock = os.open(state / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
            words = _read_words(holder)
            known = holder if any("weft" in word for word in words) else ""
            command = next((word for before, word in pairwise(words) if before == "server"), "")
            if known and command and command[0] != "-":  # others than the server hold it, too
                raise InUse(
                    f"weft server {command} works in {state}: process {known}", hint="wait until it has ended"
                ) from None
            raise InUse(
                f"another server uses {state}" + (f": process {known}" if known else ""),
                hint="stop that server first" + (f": kill {known}" if known else ""),
            ) from None
        os.pwrite(lock, f"{os.getpid()}\n".ljust(20).encode(), 0)
        yield
    finally:
        os.close(lock)


def _read_words(pid: str) -> list[str]:
    """The command line of the process, if it is here: one in another namespace for processes has other numbers."""
    try:
        return Path(f"/proc/{int(pid)}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (ValueError, OSError):
        return []
