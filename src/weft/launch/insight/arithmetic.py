"""The process that does the arithmetic of profiles: ``python -m weft.launch.insight.arithmetic``, for the controllers.

Takes a length (8 bytes, little-endian) and so many bytes on its standard input, and answers in the same form on its output. Ends
with the input, so it never outlives who started it; keeps nothing. It runs at a low priority, on one core, and imports little: half
of its memory is modules."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import BinaryIO

from weft.insight.profile.analysis import analyse
from weft.launch.insight.framing import LENGTH, MOST_BYTES


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until the input ends."""
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(head)
        batch = source.read(min(length, MOST_BYTES))
        if len(batch) < length:
            return
        answer = analyse(batch)
        sink.write(LENGTH.pack(len(answer)) + answer)
        sink.flush()


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        os.nice(10)
    serve(sys.stdin.buffer, sys.stdout.buffer)
