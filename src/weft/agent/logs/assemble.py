"""Pieces of what a guest printed become whole lines, each of a bounded length and valid UTF-8. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from weft.telemetry.logs.clean import LONGEST_LINE, clean_block, cut_line
from weft.telemetry.logs.journal import Cursor


class Chunk(NamedTuple):
    """Printed by ``at`` (unix microseconds), on one of the guest's streams."""

    at: int
    channel: str
    data: bytes


class Assembled(NamedTuple):
    """Lines as the store takes them, and how far their source is read with them."""

    times: array[int]
    text: bytes
    cursor: Cursor


def assemble(cursor: Cursor, chunks: Iterable[Chunk], position: str) -> Assembled:
    """The lines that end in ``chunks``; what follows the last is kept in the cursor until it ends."""
    rests, cut = dict(cursor.rests), set(cursor.cut)
    times, text = array("q"), []
    for at, channel, data in chunks:
        data = rests.pop(channel, b"") + data
        if channel in cut:  # the line's beginning is in the store; the rest of it is left out
            end = data.find(b"\n")
            if end < 0:
                continue
            cut.remove(channel)
            data = data[end + 1 :]
        whole = data.rfind(b"\n") + 1
        block, rest = data[:whole], data[whole:]
        if len(rest) > LONGEST_LINE:
            block += cut_line(rest, f"more than {LONGEST_LINE}")
            rest = b""
            cut.add(channel)
        if block:
            text.append(clean_block(block))
            times.extend([at] * text[-1].count(b"\n"))
        if rest:
            rests[channel] = rest
    return Assembled(times, b"".join(text), Cursor(position, rests, sorted(cut)))


def end_rests(cursor: Cursor, at: int) -> Assembled:
    """The lines that were begun, as if they had ended: a guest that asks for a name waits in the middle of a line."""
    lines = [clean_block(rest + b"\n") for rest in cursor.rests.values()]
    return Assembled(array("q", [at] * len(lines)), b"".join(lines), msgspec.structs.replace(cursor, rests={}))
