"""Watches a cluster's guests from outside: which of their processes there are, and who may write to which disk."""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.cluster.cluster import Cluster

LOOK_SECONDS = 0.1
_NAME = re.compile(rb"guest=([a-z0-9-]+)")


class Life(NamedTuple):
    """A process of a guest. ``began`` and ``ended`` are of the first look that found it, and of the first that didn't."""

    name: str
    pid: int
    began: float
    ended: float


class GuestEyes:
    """In a ``with`` block it looks ten times a second. ``doubles``: names of which two processes were seen at once; ``writers``:
    files of the shared pool that two processes had open to write. Both have the time of each look, by the monotonic clock."""

    def __init__(self, cluster: Cluster) -> None:
        self._mark, self._pool = cluster.run_mark().encode(), str(cluster.state / "pools")
        self._alive: dict[int, Life] = {}
        self._past: list[Life] = []
        self.doubles: list[tuple[float, str]] = []
        self.writers: list[tuple[float, str]] = []
        self.looks = self.files = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.problem: Exception | None = None

    def __enter__(self) -> GuestEyes:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def list_lives(self, name: str) -> list[Life]:
        """In their order."""
        found = [life for life in (*self._past, *self._alive.values()) if life.name == name]
        return sorted(found, key=lambda life: life.began)

    def check(self) -> None:
        assert self.problem is None and (self.doubles, self.writers) == ([], [])

    def look(self) -> None:
        now, seen = time.monotonic(), dict(self._list_guests())
        for pid in self._alive.keys() - seen.keys():
            self._past.append(self._alive.pop(pid)._replace(ended=now))
        for pid, name in seen.items():
            self._alive.setdefault(pid, Life(name, pid, now, float("inf")))
        names, files = list(seen.values()), [path for pid in seen for path in self._list_written(pid)]
        self.looks, self.files = self.looks + 1, max(self.files, len(files))
        self.doubles += [(now, name) for name in {*names} if names.count(name) > 1]
        self.writers += [(now, path) for path in {*files} if files.count(path) > 1]

    def _watch(self) -> None:
        try:
            while not self._over.wait(LOOK_SECONDS):
                self.look()
        except Exception as problem:  # else a test would take an eye that is shut for one that saw nothing
            self.problem = problem

    def _list_guests(self) -> list[tuple[int, str]]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError):
                    line = Path(f"/proc/{entry}/cmdline").read_bytes()
                    if b"qemu-system" in line and self._mark in line and (name := _NAME.search(line)):
                        found.append((int(entry), name[1].decode()))
        return found

    def _list_written(self, pid: int) -> set[str]:
        """Files of the shared pool that it has open to write."""
        found = set()
        with suppress(OSError):
            for entry in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    path = os.readlink(f"/proc/{pid}/fd/{entry}")
                    if self._pool in path and _is_written(Path(f"/proc/{pid}/fdinfo/{entry}").read_text()):
                        found.add(path)
        return found


def _is_written(info: str) -> bool:
    return int(info.split("flags:")[1].split()[0], 8) & os.O_ACCMODE != os.O_RDONLY
