"""How a point of a replica crosses the link: pieces of its disks, in the input of the stream verb ``receive``. Pure.

A piece is a head and, unless it is zero, its bytes. Pieces come in order: disk after disk, as the verb's input lists them, and by
their offset, so that no two overlap and all of them together are no larger than the disks. Both ends of a piece are at a sector, or
at the disk's end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import msgspec

from weft.objects.errors import InvalidInput

SECTOR = 512
PIECE_BYTES = 256 << 10
HEAD = struct.Struct(">BBQQ")  # kind, number of the disk, offset, length
DATA, ZERO = 1, 2


class Piece(msgspec.Struct, frozen=True):
    """``data`` is empty for a piece that is zero."""

    disk: int
    offset: int
    length: int
    data: bytes = b""


def encode_head(kind: int, disk: int, offset: int, length: int) -> bytes:
    return HEAD.pack(kind, disk, offset, length)


class PieceReader:
    """Splits what came into pieces of disks with these sizes. Holds at most one piece and what one ``feed`` brings."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes, self._buffer = list(sizes), bytearray()
        self._disk, self._end = 0, 0  # of the piece before
        self.bytes = 0  # of data

    def feed(self, received: bytes) -> Iterator[Piece]:
        """The pieces that are complete now. Raises InvalidInput (``badPiece``) for one that may not come here."""
        buffer = self._buffer
        buffer += received
        while len(buffer) >= HEAD.size:
            kind, disk, offset, length = HEAD.unpack_from(buffer)
            self._check(kind, disk, offset, length)
            whole = HEAD.size + (length if kind == DATA else 0)
            if len(buffer) < whole:
                return
            data = bytes(memoryview(buffer)[HEAD.size : whole])
            del buffer[:whole]
            self._disk, self._end = disk, offset + length
            self.bytes += len(data)
            yield Piece(disk, offset, length, data)

    def end(self) -> None:
        """Nothing more comes. Raises InvalidInput (``badPiece``) in the middle of a piece."""
        if self._buffer:
            raise _bad("the stream ends in the middle of a piece")

    def _check(self, kind: int, disk: int, offset: int, length: int) -> None:
        if kind not in (DATA, ZERO):
            raise _bad(f"a piece of kind {kind}")
        if disk >= len(self._sizes) or disk < self._disk:
            raise _bad(f"a piece of disk {disk} after one of disk {self._disk}, of {len(self._sizes)}")
        if length < 1 or (kind == DATA and length > PIECE_BYTES):
            raise _bad(f"a piece of {length} bytes")
        size, end = self._sizes[disk], offset + length
        if end > size:
            raise _bad(f"a piece up to {end}, beyond the end of disk {disk} at {size}")
        if offset % SECTOR or (end % SECTOR and end != size):
            raise _bad(f"a piece from {offset} to {end}, which does not begin or end at a sector")
        if disk == self._disk and offset < self._end:
            raise _bad(f"a piece at {offset} of disk {disk}, which overlaps the one before, up to {self._end}")


def _bad(what: str) -> InvalidInput:
    return InvalidInput(
        f"the point can't be read: {what}", reason="badPiece", hint="nothing of it is kept; send it again"
    )
