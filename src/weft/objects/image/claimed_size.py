"""How large a disk is by its own tables, which stand at its beginning: a file that is shorter was cut. Pure.

Sources: UEFI specification 2.10, 5.3.2 (GPT header); the kernel's documentation of ext4 (superblock); ECMA-119, 8.4.8 (volume space
size).
"""

from __future__ import annotations

import struct

_SECTOR = 512
_GPT_AT, _GPT_MAGIC, _GPT_LAST_AT = 512, b"EFI PART", 32  # the sector of the header's copy, the disk's last one
_EXT_AT = 1024  # of the superblock
_EXT_MAGIC, _EXT_MAGIC_AT = b"\x53\xef", 56
_EXT_64BIT, _EXT_INCOMPATIBLE_AT, _EXT_BLOCKS_HIGH_AT = 0x80, 96, 336
_ISO_AT, _ISO_MAGIC, _ISO_BLOCKS_AT, _ISO_BLOCK_AT = 32768, b"\x01CD001", 80, 128
_TABLE_AT, _ENTRY_BYTES = 446, 16


def read_claimed_size(beginning: bytes) -> int:
    """Claimed size in bytes, by the first 36 KiB of a raw disk or an ISO image; 0 where nothing there shows it."""
    if beginning[_ISO_AT : _ISO_AT + 6] == _ISO_MAGIC:
        (blocks,) = struct.unpack_from("<I", beginning, _ISO_AT + _ISO_BLOCKS_AT)
        (block,) = struct.unpack_from("<H", beginning, _ISO_AT + _ISO_BLOCK_AT)
        return int(blocks * block)
    if beginning[_GPT_AT : _GPT_AT + 8] == _GPT_MAGIC and len(beginning) >= _GPT_AT + 92:
        (last,) = struct.unpack_from("<Q", beginning, _GPT_AT + _GPT_LAST_AT)
        return int((last + 1) * _SECTOR)
    if beginning[_EXT_AT + _EXT_MAGIC_AT :][:2] == _EXT_MAGIC and len(beginning) >= 2 * _EXT_AT:
        return _read_ext(beginning[_EXT_AT : 2 * _EXT_AT])
    return _read_partitions(beginning) if beginning[510:512] == b"\x55\xaa" else 0


def _read_ext(superblock: bytes) -> int:
    (blocks,) = struct.unpack_from("<I", superblock, 4)
    (shift,) = struct.unpack_from("<I", superblock, 24)
    (incompatible,) = struct.unpack_from("<I", superblock, _EXT_INCOMPATIBLE_AT)
    if incompatible & _EXT_64BIT:
        blocks += struct.unpack_from("<I", superblock, _EXT_BLOCKS_HIGH_AT)[0] << 32
    return int(blocks << (10 + shift)) if shift <= 6 else 0


def _read_partitions(beginning: bytes) -> int:
    """The end of the last partition of a table as old as DOS."""
    ends = [0]
    for number in range(4):
        status, kind, first, count = struct.unpack_from("<B3xB3xII", beginning, _TABLE_AT + number * _ENTRY_BYTES)
        if status not in (0, 0x80):  # a boot sector without a table has code or nothing there
            return 0
        ends.append((first + count) * _SECTOR if kind else 0)
    return max(ends)
