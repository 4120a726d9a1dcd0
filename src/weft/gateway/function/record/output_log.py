"""The output of functions in the server's state folder: for each function two files of at most FILE_BYTES; the older one is deleted
when the newer is full. So between 4 and 8 MiB of the newest lines are kept, until the function is deleted."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

FILE_BYTES = 4 * 1024 * 1024
OPEN_FILES = 64
FOLLOWER_LINES = 10_000  # that wait for a slow reader; of more the oldest are dropped
LONGEST_LINE_BYTES = 64 * 1024
CURRENT, BEFORE = "current.log", "before.log"
STAMP_BYTES = len("2026-11-21T03:50:00.123Z")


class Follower:
    """One reader of what a function prints from now on."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()

    def put(self, line: bytes) -> None:
        if self.lines.qsize() >= FOLLOWER_LINES:
            self.lines.get_nowait()
        self.lines.put_nowait(line)


class PrintedLog:
    """The log of printed output in ``folder``, by the functions' uids."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, tuple[BinaryIO, int]] = OrderedDict()  # and how much is in it
        self._followers: dict[str, set[Follower]] = {}

    def append(self, function: str, text: bytes, id: str, now: float) -> None:
        """Keep what an instance printed while it served invocation ``id``. ``now``: unix seconds."""
        head = f"{stamp(now)} {id or '-'} ".encode()
        lines = [head + line[:LONGEST_LINE_BYTES] + b"\n" for line in text.splitlines()]
        if not lines:
            return
        data = b"".join(lines)
        file, size = self._file(function)
        if size + len(data) > FILE_BYTES and size:
            file, size = self._turn(function)
        file.write(data)
        file.flush()
        self._open[function] = (file, size + len(data))
        for follower in self._followers.get(function, ()):
            for line in lines:
                follower.put(line)

    def follow(self, function: str) -> Follower:
        follower = Follower()
        self._followers.setdefault(function, set()).add(follower)
        return follower

    def leave(self, function: str, follower: Follower) -> None:
        followers = self._followers.get(function, set())
        followers.discard(follower)
        if not followers:
            self._followers.pop(function, None)

    def read(self, function: str, *, tail: int = -1, since: str = "") -> list[bytes]:
        """The last ``tail`` lines (-1: all) of those printed since the stamp ``since``."""
        lines = [line for name in (BEFORE, CURRENT) for line in _lines(self._folder / function / name, since)]
        if since:
            lines = [line for line in lines if line[:STAMP_BYTES] >= since.encode()]
        return lines if tail < 0 else lines[len(lines) - min(tail, len(lines)) :]

    def keep_only(self, functions: set[str]) -> None:
        """Delete the output of functions that are gone."""
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            if folder.name not in functions:
                self._shut(folder.name)
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        for function in list(self._open):
            self._shut(function)

    def _file(self, function: str) -> tuple[BinaryIO, int]:
        known = self._open.get(function)
        if known is not None:
            self._open.move_to_end(function)
            return known
        folder = self._folder / function
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = open(folder / CURRENT, "ab")  # noqa: SIM115 (kept open until _shut)
        self._open[function] = found = (file, file.tell())
        if len(self._open) > OPEN_FILES:
            self._shut(next(iter(self._open)))
        return found

    def _turn(self, function: str) -> tuple[BinaryIO, int]:
        self._shut(function)
        folder = self._folder / function
        (folder / CURRENT).replace(folder / BEFORE)
        return self._file(function)

    def _shut(self, function: str) -> None:
        known = self._open.pop(function, None)
        if known is not None:
            known[0].close()


def stamp(at: float) -> str:
    """2026-11-21T03:50:00.123Z; the order of the texts is that of the times."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _lines(path: Path, since: str) -> Iterator[bytes]:
    """Those of a file; none if it was written for the last time before ``since``."""
    try:
        with open(path, "rb") as file:
            if stamp(os.fstat(file.fileno()).st_mtime + 1.0) >= since:
                yield from file
    except FileNotFoundError:
        return
