"""The layer that a container writes over its image: a raw file with a file system of its own, as large as its plan says. One
whose plan names no size has a folder of its node's instead.

Two file systems of one size differ only in their ids, which nobody uses: the first is made by mkfs.ext4, and what that wrote
into the file is remembered, as a few KB, for those that follow.
"""

from __future__ import annotations

import asyncio
import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from weft.contracts.driver.container import ContainerPlan
from weft.contracts.durable_file import keep_file
from weft.drivers.linux.ext4 import make_files
from weft.drivers.runtime.oci.paths import ContainerPaths

JOURNAL_MEGABYTES = 4
_PIECE = 4096
_MOST_SIZES, _MOST_PIECES = 8, 2048  # that are remembered, and of each: an empty one of 100 GiB has 1,300

_known: dict[
    int, list[tuple[int, bytes]]
] = {}  # by size: what isn't zero in an empty file system, compressed, and where


async def ensure_disk(plan: ContainerPlan, paths: ContainerPaths) -> None:
    """Make its disk, if it has one: whole and on disk, or not there. Raises DriverFailed, OSError."""
    if paths.disk.exists() or not plan.disk_bytes:
        return
    pending = paths.disk.with_suffix(".new")
    try:
        if (pieces := _known.get(plan.disk_bytes)) is not None:
            await asyncio.to_thread(_write, pending, plan.disk_bytes, pieces)
        else:
            await make_files(pending, plan.disk_bytes, (0, 0), "-J", f"size={JOURNAL_MEGABYTES}")
            await asyncio.to_thread(_remember, pending, plan.disk_bytes)
        await asyncio.to_thread(keep_file, pending, paths.disk)
    except BaseException:
        pending.unlink(missing_ok=True)
        raise


def _remember(path: Path, size: int) -> None:
    pieces: list[tuple[int, bytes]] = []
    for one in _list_pieces(path):
        pieces.append(one)
        if len(pieces) > _MOST_PIECES:
            return
    while len(_known) >= _MOST_SIZES:
        _known.pop(next(iter(_known)), None)
    _known[size] = pieces


def _list_pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // _PIECE * _PIECE
            except OSError as problem:
                if problem.errno == errno.ENXIO:  # nothing but zeros follows
                    return
                raise
            piece = os.pread(file.fileno(), _PIECE, at)
            if piece.strip(b"\0"):
                yield at, zlib.compress(piece)
            at += _PIECE


def _write(path: Path, size: int, pieces: list[tuple[int, bytes]]) -> None:
    with path.open("wb", buffering=0) as file:
        file.truncate(size)
        for at, piece in pieces:
            file.seek(at)
            file.write(zlib.decompress(piece))
