"""Blocks that the journal of an ext4 file system would write, and their places: a guest that wasn't frozen leaves its newest
metadata there. Pure.

Source: Linux, Documentation/filesystems/ext4/journal.rst. Committed transactions count, revoked blocks don't; nothing is written.
Fast commits are not read: what they hold is missing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import msgspec

_MAGIC = 0xC03B3998
_MAGIC_BYTES = _MAGIC.to_bytes(4, "big")
_DESCRIPTOR, _COMMIT, _SUPER_1, _SUPER_2, _REVOKE = 1, 2, 3, 4, 5
_HAS_64, _CHECKSUM_2, _CHECKSUM_3 = 0x2, 0x8, 0x10
_ESCAPED, _SAME_UUID, _LAST = 1, 2, 8
MOST_BLOCKS = 1 << 20  # a journal is at most 4 GiB in blocks of 4 KiB

ReadBlock = Callable[[int], bytes]  # a block of the journal, by its number in it


class Overlay(msgspec.Struct):
    """Blocks of the file system whose content is in the journal."""

    blocks: dict[
        int, tuple[int, bool]
    ] = {}  # number in the file system: number in the journal, and whether it is escaped

    def apply(self, block: int, read: ReadBlock) -> bytes:
        number, escaped = self.blocks[block]
        data = read(number)
        return _MAGIC_BYTES + data[4:] if escaped else data


class _Transaction(msgspec.Struct):
    tags: list[tuple[int, int, bool]] = []
    revoked: list[int] = []


def read_journal(read: ReadBlock, block_size: int) -> Overlay:
    """Ends after at most MOST_BLOCKS blocks, whatever is in them."""
    super_block = read(0)
    magic, kind, _, size, length, first, sequence, start = struct.unpack(">8I", super_block[:32])
    features = struct.unpack(">I", super_block[40:44])[0] if kind == _SUPER_2 else 0
    if magic != _MAGIC or kind not in (_SUPER_1, _SUPER_2) or size != block_size:
        return Overlay()
    if not start or not 0 < first <= start < length <= MOST_BLOCKS:
        return Overlay()  # it is clean, or no journal
    last_revoked: dict[int, int] = {}
    committed = list(_walk(read, features, (first, length), start, sequence))
    for number, transaction in enumerate(committed):
        last_revoked |= dict.fromkeys(transaction.revoked, number)
    overlay = Overlay()
    for number, transaction in enumerate(committed):
        for block, place, escaped in transaction.tags:
            if last_revoked.get(block, -1) < number:
                overlay.blocks[block] = (place, escaped)
            else:
                overlay.blocks.pop(block, None)
    return overlay


def _walk(read: ReadBlock, features: int, ring: tuple[int, int], start: int, sequence: int) -> Iterator[_Transaction]:
    """The committed transactions, oldest first."""
    first, length = ring
    at, left, current = start, length - first, _Transaction()

    def step(count: int) -> None:
        nonlocal at, left
        at, left = first + (at - first + count) % (length - first), left - count

    while left > 0:
        block = read(at)
        magic, kind, number = struct.unpack(">III", block[:12])
        if magic != _MAGIC or number != sequence:
            return
        step(1)
        if kind == _DESCRIPTOR:
            for target, escaped in _read_tags(block, features):
                if left <= 0:
                    return
                current.tags.append((target, at, escaped))
                step(1)
        elif kind == _REVOKE:
            current.revoked += _read_revoked(block, features)
        elif kind == _COMMIT:
            yield current
            current, sequence = _Transaction(), (sequence + 1) & 0xFFFFFFFF
        else:
            return


def _read_tags(block: bytes, features: int) -> Iterator[tuple[int, bool]]:
    at, end = 12, len(block) - (4 if features & (_CHECKSUM_2 | _CHECKSUM_3) else 0)
    size = 16 if features & _CHECKSUM_3 else 8 + 4 * bool(features & _HAS_64) + 2 * bool(features & _CHECKSUM_2)
    while at + size <= end:
        if features & _CHECKSUM_3:
            low, flags, high = struct.unpack(">III", block[at : at + 12])
        else:
            low, flags = struct.unpack(">I2xH", block[at : at + 8])
            high = struct.unpack(">I", block[at + 8 : at + 12])[0] if features & _HAS_64 else 0
        yield low | (high << 32 if features & _HAS_64 else 0), bool(flags & _ESCAPED)
        if flags & _LAST:
            return
        at += size + (0 if flags & _SAME_UUID else 16)


def _read_revoked(block: bytes, features: int) -> list[int]:
    size, form = (8, "Q") if features & _HAS_64 else (4, "I")
    used = min(struct.unpack(">I", block[12:16])[0], len(block))
    count = max(0, used - 16) // size
    return list(struct.unpack(f">{count}{form}", block[16 : 16 + count * size]))
