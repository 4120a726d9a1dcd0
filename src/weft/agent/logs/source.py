"""The source of a workload's lines: its console's log, or its container's. Reads files; may be called from any thread."""

from __future__ import annotations

import os
from typing import NamedTuple

from weft.agent.logs.assemble import Chunk
from weft.agent.workload.console_log import PrintedLog
from weft.contracts.driver.container import HasLog
from weft.contracts.driver.runtime import CountsPrinted, HasConsole

PIECE_BYTES = 256 << 10
AHEAD_SECONDS = 60.0
_FEW_BYTES = 4 << 10  # less is read as it comes


class Piece(NamedTuple):
    """``missed``: in words, what was gone before it was read; "": nothing."""

    chunks: list[Chunk]
    position: str
    missed: str = ""


def read_source(driver: object, guest_id: str, position: str, now: float) -> Piece:
    """Read what was printed since ``position`` ("": from the beginning of what is kept). Raises NotFound, OSError."""
    if isinstance(driver, HasLog):
        return _read_container(driver, guest_id, position, now)
    if isinstance(driver, HasConsole):
        return _read_console(driver, guest_id, position, now)
    return Piece([], position)


def count_lines(driver: object, guest_id: str, position: int) -> int | None:
    """How many lines the kept part of its console has before ``position``; None if it doesn't reach to there. Raises OSError."""
    if not isinstance(driver, HasConsole):
        return None
    log = PrintedLog(driver, guest_id)
    start, end = log.start, log.end
    if end is None or not start <= position <= end:
        return None
    printed = log.read(start, position - start)
    return (
        printed.data.count(b"\n") if printed.start == start else None
    )  # None: its beginning was dropped as it was read


def _read_container(driver: HasLog, guest_id: str, position: str, now: float) -> Piece:
    """Times may be of the container's own machine, and one that lies far ahead is not believed."""
    piece = driver.read_log_after(guest_id, position)
    chunks = [
        Chunk(int((line.at if 0 <= line.at <= now + AHEAD_SECONDS else now) * 1e6), line.channel, line.data)
        for line in piece.lines
    ]
    return Piece(chunks, piece.position, "some of its lines" if piece.missed else "")


def _read_console(driver: HasConsole, guest_id: str, position: str, now: float) -> Piece:
    """QEMU writes no times: what is read as it comes has the present one, and what came before, that of the driver's notes."""
    log = PrintedLog(driver, guest_id)
    after = int(position) if position else log.start
    end = log.end
    if end is None or end == after:
        return Piece([], position)
    if end < after:  # a new log
        after = log.start
    printed = log.read(after, PIECE_BYTES)
    if not printed.data:
        return Piece([], position)
    missed = printed.start - after if position else 0
    last = min(now, os.stat(log.path).st_mtime)
    chunks, at = [], 0
    notes = driver.printed.times(guest_id) if isinstance(driver, CountsPrinted) and end - after > _FEW_BYTES else ()
    for note in notes:
        upto = min(note.printed - printed.start, len(printed.data))
        if upto > at:
            chunks.append(Chunk(int(note.at * 1e6), "", printed.data[at:upto]))
            at = upto
    if at < len(printed.data):
        chunks.append(Chunk(int(last * 1e6), "", printed.data[at:]))
    words = f"{missed} bytes that it printed" if missed > 0 else ""
    return Piece(chunks, str(printed.start + len(printed.data)), words)
