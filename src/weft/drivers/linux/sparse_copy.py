"""A copy of a large sparse file that its writer still has: by reflink where the file system can, else byte by byte, and then again
only what has changed. Blocks."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_FICLONE = 0x40049409  # source: ioctl_ficlone(2), linux/fs.h
_PIECE = 1 << 20
_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


def clone_file(source: Path, target: Path) -> bool:
    """Make ``target`` the same as ``source`` at once, without reading it; False where the file system can't. Raises OSError."""
    with source.open("rb") as from_, target.open("wb") as to:
        try:
            fcntl.ioctl(to.fileno(), _FICLONE, from_.fileno())
        except OSError as problem:
            if problem.errno in _CANNOT:
                return False
            raise
    return True


def update_copy(source: Path, target: Path) -> None:
    """Make ``target`` the same as ``source``, writing only where they differ. Raises OSError."""
    with source.open("rb", buffering=0) as from_, target.open("r+b" if target.exists() else "w+b", buffering=0) as to:
        end = os.fstat(from_.fileno()).st_size
        os.ftruncate(to.fileno(), end)
        for at in _list_pieces((from_.fileno(), to.fileno()), end):
            size = min(_PIECE, end - at)
            wanted = os.pread(from_.fileno(), size, at)
            if os.pread(to.fileno(), size, at) != wanted:
                os.pwrite(to.fileno(), wanted, at)


def _list_pieces(files: tuple[int, int], end: int) -> Iterator[int]:
    """List the offsets of the pieces in which one of the files has data."""
    at = 0
    while at < end:
        data = min(_find_data(file, at, end) for file in files)
        at = max(at, data // _PIECE * _PIECE)
        if data < end:
            yield at
        at += _PIECE


def _find_data(file: int, at: int, end: int) -> int:
    try:
        return os.lseek(file, at, os.SEEK_DATA)
    except OSError as problem:
        if problem.errno == errno.ENXIO:
            return end
        raise
