"""A container's log by conmon, in Kubernetes' format (time, stream, whole or part, text): the file that is written now and the
one before."""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from weft.contracts.clock import Clock
from weft.contracts.driver.container import LogLine, LogPiece

TURN_BYTES = 8 << 20
LOOK_SECONDS = 0.1
READ_BYTES = 256 << 10
MARK_BYTES = 30  # of a line's time
GAP = b"[weft: lines are missing here: the container prints faster than they are read]\n"


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
    """Parse a time like 2026-01-31T12:00:00.123456789+01:00; the last three digits of the nanoseconds are lost. Raises
    ValueError."""
    whole, _, rest = text.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    fraction, zone = rest[:digits][:6].ljust(6, "0"), rest[digits:].replace("Z", "+00:00")
    return datetime.fromisoformat(f"{whole}.{fraction}{zone}").timestamp()


def turned(log: Path) -> Path:
    """The file that the log was before it was turned over."""
    return log.with_name(f"{log.name}.1")


def turn_over(log: Path, reopen: Callable[[], None]) -> None:
    """Begin a new file if this one is long enough; the older one is dropped. Raises OSError."""
    if log.stat().st_size < TURN_BYTES:
        return
    log.replace(turned(log))
    reopen()


async def read_lines(
    log: Path, clock: Clock, *, tail: int, follow: bool, has_ended: Callable[[], bool]
) -> AsyncGenerator[LogLine, None]:
    """Read lines like HasLog. With ``follow``, on until the container had ended and nothing more came. A piece at a time, in a
    thread: a whole log takes a second to read, and a container may print faster than this reads, for ever: then files are dropped
    that nobody has read, and a line says so."""
    files = _open_both(log)
    try:
        ends = [os.fstat(file.fileno()).st_size for file in files]  # what comes meanwhile is for those who follow
        skipped = 0
        if tail >= 0:
            counts = [await asyncio.to_thread(_count_lines, file, end) for file, end in zip(files, ends, strict=True)]
            skipped = max(0, sum(counts) - tail)
        for file, end in zip(files, ends, strict=True):
            while lines := await asyncio.to_thread(_read_piece, file, end):
                for line in _parse(lines[skipped:]):
                    yield line
                skipped = max(0, skipped - len(lines))
        while follow:
            ended = has_ended()
            lines = await asyncio.to_thread(_read_piece, files[-1]) if files else []
            if not lines and (fresh := _open_other(log, files[-1] if files else None)) is not None:
                lines = (
                    await asyncio.to_thread(_read_piece, files[-1]) if files else []
                )  # between the look and the turn
                if not lines:
                    if files and not any(_is_file(turned(log), file) for file in (files[-1], fresh)):
                        yield LogLine(clock.now(), "stderr", GAP)
                    for file in files:
                        file.close()
                    files = [fresh]
                    continue
                fresh.close()
            for line in _parse(lines):
                yield line
            if ended and not lines:
                return
            if not lines:
                await clock.sleep(LOOK_SECONDS)
    finally:
        for file in files:
            file.close()


def read_after(log: Path, position: str) -> LogPiece:
    """See ``HasLog.read_log_after``. A position is a file's mark, and how far it was read: its inode may be another's by now."""
    files = _open_both(log)
    try:
        marks = [_mark(file) for file in files]
        mark, _, at = position.partition(":")
        known = bool(mark) and mark in marks  # an empty file has no mark
        first = marks.index(mark) if known else 0
        if known:
            files[first].seek(int(at))
        for index in range(first, len(files)):
            lines = _read_piece(files[index])
            if lines or index == len(files) - 1:
                position = f"{marks[index]}:{files[index].tell()}" if marks[index] else position
                return LogPiece(list(_parse(lines)), position, missed=bool(mark) and not known and len(files) > 1)
        return LogPiece([], position)
    finally:
        for file in files:
            file.close()


def _mark(file: BinaryIO) -> str:
    """Tells this file from the one before and after it: its first line's time. "" for an empty one."""
    head = os.pread(file.fileno(), MARK_BYTES, 0)
    return f"{zlib.crc32(head):08x}" if len(head) == MARK_BYTES else ""


def _open_both(log: Path) -> list[BinaryIO]:
    """The log before this one and this one, those that there are."""
    files: list[BinaryIO] = []
    for path in (turned(log), log):
        with contextlib.suppress(FileNotFoundError):
            files.append(open(path, "rb"))  # noqa: SIM115 (the caller closes them)
    return files


def _parse(lines: Iterable[bytes]) -> Iterator[LogLine]:
    return (parsed for line in lines if (parsed := parse_line(line)) is not None)


def _count_lines(file: BinaryIO, end: int) -> int:
    """Count the lines up to ``end``; the file stands at its beginning again."""
    count = 0
    while piece := file.read(min(READ_BYTES, end - file.tell())):
        count += piece.count(b"\n")
    file.seek(0)
    return count


def _read_piece(file: BinaryIO, end: int | None = None) -> list[bytes]:
    """Whole lines from where it stands, up to ``end``; half of one stays for later. None at its end."""
    start = file.tell()
    piece = file.read(READ_BYTES if end is None else min(READ_BYTES, end - start))
    whole = piece.rfind(b"\n") + 1
    file.seek(start + whole)
    return piece[:whole].split(b"\n")[:-1]


def _open_other(log: Path, current: BinaryIO | None) -> BinaryIO | None:
    """The log, if it is another file than the current one by now."""
    try:
        found = log.stat()
    except FileNotFoundError:
        return None
    if current is not None and _is_same(found, current):
        return None
    return open(log, "rb")


def _is_file(path: Path, file: BinaryIO) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return _is_same(path.stat(), file)
    return False


def _is_same(found: os.stat_result, file: BinaryIO) -> bool:
    now = os.fstat(file.fileno())
    return (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino)
