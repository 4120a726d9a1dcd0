"""The disk by which a container's machine and its host exchange records: what to run, what was printed, how it ended.

A file of this node, whose layout ``images/microvm/init.c`` describes. It outlives machine, driver and power cuts, and never
grows beyond its size. The machine writes it, so its content is checked before it is used.
"""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.container import LogLine, LogPiece
from weft.objects.errors import TooLarge

CONFIG_AT, CONFIG_BYTES = 4096, 1 << 20
RING_AT = CONFIG_AT + CONFIG_BYTES
RING_BYTES = 16 << 20
BOOTING, RUNNING, ENDED = 1, 2, 3
SIGNALLED, OUT_OF_MEMORY, UNSTARTED, AGAIN, NO_PROGRAM = 1, 2, 4, 8, 16
LOOK_SECONDS = 0.1
READ_BYTES = 256 << 10
_LONGEST_LINE = 64 << 10
_HEAD = struct.Struct("<8s32sIIIIQQ")
_MAGIC = b"weftbox1"


class Head(msgspec.Struct, frozen=True):
    run: str  # the run that this is of
    state: int  # BOOTING, RUNNING or ENDED
    how: int  # it ended: SIGNALLED and the others, as bits
    code: int  # its exit code, or the signal's number
    first: int  # of all that was printed, the first byte that is there
    end: int  # and the one after the last


def make_exchange_disk(path: Path) -> None:
    """An empty exchange disk, unless there is one; only its written blocks use space. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, RING_AT + RING_BYTES)
    finally:
        os.close(descriptor)


def write_config(path: Path, records: Sequence[tuple[str, str]]) -> None:
    """Write what to run next, on disk when this returns. Raises TooLarge, OSError."""
    data = b"".join(f"{word} {value}".encode() + b"\0" for word, value in records) + b"\0"
    if len(data) > CONFIG_BYTES:
        raise TooLarge(
            f"its arguments and environment take {len(data)} bytes",
            field="env",
            hint="use at most 1 MiB; put more into a volume",
        )
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, data, CONFIG_AT)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def read_head(path: Path) -> Head | None:
    """None while the machine has written nothing, or nonsense."""
    try:
        with open(path, "rb") as file:
            return _read_head(file.read(_HEAD.size))
    except OSError:
        return None


def _read_head(data: bytes) -> Head | None:
    if len(data) < _HEAD.size:
        return None
    magic, run, state, how, code, _, first, end = _HEAD.unpack(data)
    if magic != _MAGIC or not 0 <= end - first <= RING_BYTES:
        return None
    return Head(run.rstrip(b"\0").decode(errors="replace"), state, how, code, first, end)


class Ring:
    """Reads on in what was printed, from byte ``at`` of all of it, however often that went round. ``close`` it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.at = 0
        self._rest = b""

    def close(self) -> None:
        os.close(self._file)

    def read(self) -> list[LogLine] | None:
        """Read what came since the last time, READ_BYTES of it at most; None: there is nothing more now."""
        head = self._head()
        if head is None:
            return None
        self._skip_to(head.first)
        length = min(head.end - self.at, READ_BYTES)
        if length <= 0:
            return None
        data = self._read_bytes(self.at, length)
        now = self._head()
        if now is not None and now.first > self.at:  # it was written over meanwhile
            data = data[now.first - self.at :]
            self._skip_to(now.first)
        self.at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_LONGEST_LINE:]
        return [line for line in map(parse_line, lines) if line is not None]

    @property
    def read_bytes(self) -> int:
        """How much of what was printed was read as whole lines."""
        return self.at - len(self._rest)

    def rewind(self) -> None:
        """Go back to the first line that is there."""
        self.at, self._rest = 0, b""

    def find_end(self) -> int:
        """How much was printed in all by now."""
        head = self._head()
        return 0 if head is None else head.end

    def _head(self) -> Head | None:
        return _read_head(os.pread(self._file, _HEAD.size, 0))

    def _skip_to(self, first: int) -> None:
        """Skip what lies before ``first``, which is gone; the line that it falls into is not whole, and parses as none."""
        if self.at < first:
            self.at, self._rest = first, b""

    def _read_bytes(self, at: int, length: int) -> bytes:
        place = at % RING_BYTES
        data = os.pread(self._file, min(length, RING_BYTES - place), RING_AT + place)
        return data if len(data) == length else data + os.pread(self._file, length - len(data), RING_AT)


def parse_line(line: bytes) -> LogLine | None:
    """Pure. SECONDS.NANOSECONDS STREAM F|P TEXT; None for anything else."""
    words = line.split(b" ", 3)
    if len(words) != 4 or words[1] not in (b"stdout", b"stderr") or words[2] not in (b"F", b"P"):
        return None
    try:
        at = float(words[0])
    except ValueError:
        return None
    return LogLine(at, "stdout" if words[1] == b"stdout" else "stderr", words[3] + (b"\n" if words[2] == b"F" else b""))


def read_after(path: Path, position: str) -> LogPiece:
    """See ``HasLog.read_log_after``. A position is how much of what was printed, in all runs, was read. Raises OSError."""
    ring = Ring(path)
    try:
        head = read_head(path)
        if head is None:
            return LogPiece([], position)
        at = int(position) if position.isdigit() else 0
        ring.at = at if at <= head.end else 0  # more than there is: it is another disk
        missed = 0 < ring.at < head.first
        return LogPiece(ring.read() or [], str(ring.read_bytes), missed)
    finally:
        ring.close()


async def read_lines(
    path: Path, clock: Clock, *, tail: int, follow: bool, has_ended: Callable[[], Awaitable[bool]]
) -> AsyncGenerator[LogLine, None]:
    """Read lines like HasLog. With ``follow``, on until it had ended and nothing more came."""
    try:
        ring = Ring(path)
    except FileNotFoundError:
        return
    try:
        end = ring.find_end()  # what comes meanwhile is for those who follow: it may never stop
        skipped = 0
        if tail >= 0:
            async for lines in _read_until(end, ring, clock):
                skipped += len(lines)
            skipped = max(0, skipped - tail)
            ring.rewind()
        async for lines in _read_until(end, ring, clock):
            for line in lines[skipped:]:
                yield line
            skipped = max(0, skipped - len(lines))
        while follow:
            ended = await has_ended()
            found = ring.read()
            for line in found or ():
                yield line
            if ended and found is None:
                return
            await clock.sleep(LOOK_SECONDS if found is None else 0)
    finally:
        ring.close()


async def _read_until(end: int, ring: Ring, clock: Clock) -> AsyncGenerator[list[LogLine], None]:
    while ring.at < end and (lines := ring.read()) is not None:
        yield lines
        await clock.sleep(0)
