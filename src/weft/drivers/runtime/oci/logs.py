"""What a container printed: conmon's log, in Kubernetes' format (time, stream, whole or part, text), in the file that is written
now and the one before.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from weft.contracts.clock import Clock
from weft.contracts.container import LogLine

TURN_BYTES = 8 << 20
LOOK_SECONDS = 0.1
READ_BYTES = 256 << 10


def parse_line(line: bytes) -> LogLine | None:
    """Pure. None for what is no line of such a log."""
    words = line.split(b" ", 3)
    if len(words) != 4 or words[1] not in (b"stdout", b"stderr"):
        return None
    try:
        at = parse_time(words[0].decode())
    except (UnicodeDecodeError, ValueError):
        return None
    end = b"" if words[2] == b"P" else b"\n"
    return LogLine(at, "stdout" if words[1] == b"stdout" else "stderr", words[3] + end)


def parse_time(text: str) -> float:
    """Of 2026-01-31T12:00:00.123456789+01:00, the nanoseconds' last three digits lost. Raises ValueError."""
    whole, _, rest = text.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    fraction, zone = rest[:digits][:6].ljust(6, "0"), rest[digits:].replace("Z", "+00:00")
    return datetime.fromisoformat(f"{whole}.{fraction}{zone}").timestamp()


def turned(log: Path) -> Path:
    """The file that the log was before it was turned over."""
    return log.with_name(f"{log.name}.1")


def turn_over(log: Path, reopen: Callable[[], None]) -> None:
    """Begin a new file if this one is long enough; of the older one nothing is kept. Raises OSError."""
    if log.stat().st_size < TURN_BYTES:
        return
    log.replace(turned(log))
    reopen()


async def read_lines(
    log: Path, clock: Clock, *, tail: int, follow: bool, has_ended: Callable[[], bool]
) -> AsyncGenerator[LogLine, None]:
    """As HasLog has it. With ``follow``, on until the container had ended and nothing more came."""
    files: list[BinaryIO] = []
    try:
        for path in (turned(log), log):
            if path.exists():
                files.append(open(path, "rb"))  # noqa: PERF401, SIM115 (if the second isn't opened, the first is closed below)
        if tail >= 0:
            last = deque((line for file in files for line in _read_all(file)), maxlen=tail)
            for line in last:
                yield line
        else:
            for file in files:
                for line in _read_all(file):
                    yield line
        while follow:
            ended = has_ended()
            current = files[-1] if files else None
            found = list(_read_all(current)) if current is not None else []
            for line in found:
                yield line
            if not found and (fresh := _open_other(log, current)) is not None:
                if current is not None:
                    for line in _read_all(current):  # what came between the look and the turn
                        yield line
                files.append(fresh)
                continue
            if ended and not found:
                return
            if not found:
                await clock.sleep(LOOK_SECONDS)
    finally:
        for file in files:
            file.close()


def _read_all(file: BinaryIO) -> Iterator[LogLine]:
    """Whole lines from where it stands; half of one stays for later."""
    while True:
        start = file.tell()
        piece = file.read(READ_BYTES)
        whole = piece.rfind(b"\n") + 1
        if not whole:
            file.seek(start)
            return
        file.seek(start + whole)
        for line in piece[:whole].splitlines():
            if (parsed := parse_line(line)) is not None:
                yield parsed


def _open_other(log: Path, current: BinaryIO | None) -> BinaryIO | None:
    """The log, if it is another file than the current one by now."""
    try:
        found = log.stat()
    except FileNotFoundError:
        return None
    if current is not None:
        now = os.fstat(current.fileno())
        if (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino):
            return None
    return open(log, "rb")
