"""A raw file with a file system on all of it, that the kernel can mount: a volume, which a machine can have as a disk too, or
the layer that a container writes into its root. Its content decides: nothing is formatted that isn't empty.

Made with mkfs.ext4 under another name first; checked with e2fsck and grown with resize2fs while nobody has it open, as the
locks show that QEMU and mounted disks hold on their files.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from weft.contracts.disk_program import bound_seconds
from weft.contracts.driver.disk_lock import hold_disk
from weft.drivers.linux.programs import run_on_disk
from weft.objects.errors import DriverFailed, InvalidInput

FILE_SYSTEM = "ext4"
CHECK_SECONDS = 1800.0  # at most: a large disk after a power cut
_MAGIC_AT, _MAGIC = 1080, b"\x53\xef"  # source: the ext4 superblock, s_magic
_SUPERBLOCK_AT, _SUPERBLOCK_BYTES = 1024, 1024
_BLOCKS_AT, _BLOCK_SIZE_AT, _FEATURES_AT, _BLOCKS_HIGH_AT, _64BIT = 4, 24, 96, 336, 0x80  # s_blocks_count_lo, …
_MENDED = 2  # e2fsck: 1 errors were mended, 2 so too
_DAMAGED = "the data on the disk is damaged; repair it in a VM, or restore it"
_HINT = "in a VM, give the whole disk an ext4 file system (mkfs.ext4 /dev/vdb), or make another volume"


def is_blank(path: Path) -> bool:
    """Whether nothing was ever written to it but zeros."""
    with path.open("rb") as file:
        at, end = 0, os.fstat(file.fileno()).st_size
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as problem:
                if problem.errno == errno.ENXIO:
                    return True
                raise
            file.seek(at)
            piece = file.read(1 << 20)
            if piece.strip(b"\0"):
                return False
            at += len(piece)
    return True


def has_files(path: Path) -> bool:
    """Whether an ext4 (or ext2, ext3) begins where the disk does."""
    with path.open("rb") as file:
        file.seek(_MAGIC_AT)
        return file.read(2) == _MAGIC


def measure_files(path: Path) -> int:
    """Bytes that the file system takes of its disk, as it says itself."""
    with path.open("rb") as file:
        file.seek(_SUPERBLOCK_AT)
        start = file.read(_SUPERBLOCK_BYTES)
    low, block = (int.from_bytes(start[at : at + 4], "little") for at in (_BLOCKS_AT, _BLOCK_SIZE_AT))
    wide = int.from_bytes(start[_FEATURES_AT : _FEATURES_AT + 4], "little") & _64BIT
    high = int.from_bytes(start[_BLOCKS_HIGH_AT : _BLOCKS_HIGH_AT + 4], "little") if wide else 0
    return (high << 32 | low) * (1024 << min(block, 6))


def has_room(files_bytes: int, disk_bytes: int) -> bool:
    """Pure. Whether it is worth while to grow: a last piece too small for a group of blocks always stays."""
    left = disk_bytes - files_bytes
    return left >= 4 << 20 or (left >= 64 << 10 and left * 32 >= files_bytes)


def refuse_others(path: Path, what: str) -> None:
    """Raises InvalidInput for a disk with something else on it than files or nothing."""
    if not has_files(path) and not is_blank(path):
        raise InvalidInput(
            f"{what} has data on it, but no {FILE_SYSTEM} file system, so it isn't formatted",
            reason="notAFileSystem",
            hint=_HINT,
        )


async def make_files(path: Path, size_bytes: int, owner: tuple[int, int], *options: str) -> None:
    """An empty file system of that size, whose root folder is ``owner``'s; ``options`` are mkfs.ext4's. Raises DriverFailed,
    OSError."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    extended = f"root_owner={owner[0]}:{owner[1]},lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    argv = ["mkfs.ext4", "-q", "-F", "-m", "0", *options, "-E", extended, str(path)]
    await _run(argv, bound_seconds(size_bytes, CHECK_SECONDS))


async def check_files(path: Path, size_bytes: int, what: str) -> None:
    """Mend what a power cut damaged, and grow it to ``size_bytes`` if it has less. Raises DriverFailed for one that can't be
    mended, or that is in use."""
    with _hold(path, what):
        grows, data_bytes = await asyncio.to_thread(_lengthen, path, size_bytes)
        seconds = bound_seconds(data_bytes, CHECK_SECONDS)
        await _run(["e2fsck", "-p", *(["-f"] if grows else []), str(path)], seconds, highest=_MENDED, hint=_DAMAGED)
        if grows:
            await _run(["resize2fs", str(path)], seconds)


def _lengthen(path: Path, size_bytes: int) -> tuple[bool, int]:
    """Give the file that size if it has less; whether the file system in it should grow, and how many bytes aren't holes."""
    if path.stat().st_size < size_bytes:
        os.truncate(path, size_bytes)
    now = path.stat()
    return has_room(measure_files(path), now.st_size), now.st_blocks * 512


@contextlib.contextmanager
def _hold(path: Path, what: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not hold_disk(descriptor):
            raise DriverFailed(f"{what} is still in use", reason="inUse", details={"step": "disk"})
        yield
    finally:
        os.close(descriptor)


async def _run(argv: list[str], seconds: float, *, highest: int = 0, hint: str | None = None) -> None:
    await run_on_disk(argv, "e2fsprogs", seconds=seconds, highest=highest, hint=hint)
