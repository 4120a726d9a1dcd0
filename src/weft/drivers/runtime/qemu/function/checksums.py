"""Whether large files that are made once and read for weeks are still what was written.

Beside each is a note with its size and the digest of its content (without holes). A file is read whole once in this process's
life; later its size and time of change are enough.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path

import msgspec

_PIECE = 1 << 20


class Note(msgspec.Struct, frozen=True):
    size: int
    digest: str


class Checks:
    """Remembers which files were found whole, as they were then."""

    def __init__(self) -> None:
        self._whole: dict[Path, tuple[int, int, int]] = {}

    @staticmethod
    def note(path: Path) -> Path:
        return path.with_name(f"{path.name}.json")

    def trust(self, path: Path) -> None:
        """Trust a file that this process has just written."""
        self._whole[path] = _identify(path)

    def digest(self, path: Path) -> str:
        """The digest of its content, from its note. Raises OSError."""
        return msgspec.json.decode(self.note(path).read_bytes(), type=Note).digest

    async def holds(self, path: Path) -> bool:
        """Whether it exists and matches its note."""
        try:
            now = _identify(path)
            if self._whole.get(path) == now:
                return True
            note = self.note(path).read_bytes()
            if await asyncio.to_thread(inspect_file, path) != note:
                return False
        except OSError:
            return False
        self._whole[path] = now
        return True


def inspect_file(path: Path) -> bytes:
    """Its note. Reads all of it but its holes. Raises OSError."""
    digest = hashlib.blake2b(digest_size=32)
    with open(path, "rb", buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as problem:
                if problem.errno == errno.ENXIO:
                    break
                raise
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            os.lseek(file.fileno(), at, os.SEEK_SET)
            while at < end and (piece := file.read(min(_PIECE, end - at))):
                if piece.count(0) != len(piece):  # what is a hole on one disk is zeros on another
                    digest.update(at.to_bytes(8, "little") + piece)
                at += len(piece)
    return msgspec.json.encode(Note(size, digest.hexdigest()))


def _identify(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
