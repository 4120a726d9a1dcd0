"""Places of file systems on a disk: the whole of it, or its partitions (GPT, MBR).

Sources: UEFI specification 2.10, chapter 5; the layout of MBR as util-linux's fdisk documents it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import msgspec

Read = Callable[[int, int], bytes]  # offset, length: exactly that many bytes
SECTOR = 512
MOST_PARTITIONS = 256  # Linux reads no more of a disk
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE  # in the MBR of a disk with a GPT; without it Linux reads the MBR, whatever stayed of an older GPT
_MARKS = (  # offset, bytes, what it is
    (1080, b"\x53\xef", "ext4"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS, encrypted"),
    (512, b"LABELONE", "LVM"),
    (4086, b"SWAPSPACE2", "swap"),
    (0, b"hsqs", "squashfs"),
    (3, b"NTFS    ", "NTFS"),
    (82, b"FAT32   ", "FAT"),
    (54, b"FAT1", "FAT"),
    (0x8001, b"CD001", "ISO 9660"),
)


class Partition(msgspec.Struct, frozen=True):
    number: int  # 0: the whole disk
    start: int  # bytes
    size: int
    holds: str  # ext4 (also ext2 and ext3), or what else; "": nothing that is known


def find_parts(read: Read, size: int) -> list[Partition]:
    """Find what is on a disk of ``size`` bytes: the whole, if it has a file system, or its partitions."""
    whole = _identify(read, 0, size)
    if whole in ("ext4", "xfs", "btrfs"):
        return [Partition(0, 0, size, whole)]
    found = [
        Partition(number, start, min(length, size - start), _identify(read, start, min(length, size - start)))
        for number, start, length in list(_read_table(read, size))[:MOST_PARTITIONS]
        if 0 < start < size and length > 0  # one that is longer than its disk ends with it, as on Linux
    ]
    return found or [Partition(0, 0, size, whole)]


def _identify(read: Read, start: int, size: int) -> str:
    for offset, mark, what in _MARKS:
        if offset + len(mark) <= size and read(start + offset, len(mark)) == mark:
            return what
    return ""


def _read_table(read: Read, size: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and length of each partition."""
    if size < 3 * SECTOR:
        return
    first = read(0, SECTOR)
    if first[510:] != b"\x55\xaa":
        return
    kinds = [_read_mbr_entry(first, number)[0] for number in range(4)]
    if _PROTECTIVE in kinds and read(SECTOR, 8) == b"EFI PART":
        yield from _read_gpt(read, size)
        return
    for number in range(1, 5):
        kind, start, length = _read_mbr_entry(first, number - 1)
        if kind in _EXTENDED:
            yield from _read_logical(read, size, start)
        elif kind:
            yield number, start, length


def _read_gpt(read: Read, size: int) -> Iterator[tuple[int, int, int]]:
    at, count, length = struct.unpack("<QII", read(SECTOR + 72, 16))
    if not 128 <= length <= 4096 or at * SECTOR >= size:
        return
    for number in range(min(count, MOST_PARTITIONS)):
        offset = at * SECTOR + number * length
        if offset + 48 > size:
            return
        entry = read(offset, 48)
        first, last = struct.unpack("<QQ", entry[32:])
        if any(entry[:16]) and last >= first:
            yield number + 1, first * SECTOR, (last - first + 1) * SECTOR


def _read_logical(read: Read, size: int, extended: int) -> Iterator[tuple[int, int, int]]:
    """The partitions in an extended one, a list of tables: each is later on the disk than the one before, so it ends."""
    table, number = extended, 5
    while 0 < table <= size - SECTOR and number < 5 + MOST_PARTITIONS:
        sector = read(table, SECTOR)
        if sector[510:] != b"\x55\xaa":
            return
        kind, start, length = _read_mbr_entry(sector, 0)
        if kind:
            yield number, table + start, length
        kind, following, _ = _read_mbr_entry(sector, 1)
        if kind not in _EXTENDED or extended + following <= table:
            return
        table, number = extended + following, number + 1


def _read_mbr_entry(sector: bytes, number: int) -> tuple[int, int, int]:
    """Type, start and length in bytes."""
    entry = sector[446 + 16 * number :][:16]
    start, length = struct.unpack("<II", entry[8:])
    return entry[4], start * SECTOR, length * SECTOR
