"""Files that a guest sends take no more of this machine's disk than what is in them: pieces of zeros become holes."""

from __future__ import annotations

import os

HOLE_BYTES = 4096
_ZEROS = bytes(HOLE_BYTES)


def write_sparse(descriptor: int, data: bytes | memoryview) -> None:
    """Write at the file's position. Raises OSError; ``end_sparse`` once all is written."""
    with memoryview(data) as view:
        at = 0
        while at < len(view):
            is_hole, start = _is_zero(view[at : at + HOLE_BYTES]), at
            while at < len(view) and _is_zero(view[at : at + HOLE_BYTES]) == is_hole:
                at += HOLE_BYTES
            at = min(at, len(view))
            if is_hole:
                os.lseek(descriptor, at - start, os.SEEK_CUR)
            while start < at and not is_hole:
                start += os.write(descriptor, view[start:at])


def end_sparse(descriptor: int) -> None:
    """Give the file its size, also if it ends in a hole. Raises OSError."""
    os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))


def _is_zero(piece: memoryview) -> bool:
    return piece == _ZEROS[: len(piece)]
