"""Samples of what a guest does to its memory, seen from outside: a few thousand of its pages are read again and again.

Reads the QEMU process's memory and its page map in /proc, where QEMU says that the guest's memory lies; the guest isn't
stopped and QEMU does nothing for it. QEMU's own dirty bitmap says 0 of an emulated guest, and knows nothing of how
much of a page changes, or how well it compresses.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import zlib
from array import array
from operator import ne
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.migration import Load
from weft.drivers.linux.processes import is_alive
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.record import find_own_file
from weft.objects.errors import Unavailable

PAGE_BYTES = 4096
MOST_PAGES = 8192  # looked at: a write rate of 1 % of the memory a second is then known to a tenth of itself
WHOLE_PAGES = 2048  # of these, kept whole, to see how much of a page changes
COMPRESSED_PAGES = 128  # as many go into one of QEMU's packets
LOOKS = (0.25, 0.5, 1.0)  # as shares of the time that a sample takes
_LEAST_BLOCK_BYTES = 1 << 20  # what is smaller holds tables and firmware
_PIECE_BYTES = 1 << 20
_ENTRY_BYTES = 8  # of a page map
_HAS_CONTENT = bytes(1 if high & 0xC0 else 0 for high in range(256))  # in memory, or swapped out
_ZERO = zlib.crc32(bytes(PAGE_BYTES))


class Block(msgspec.Struct, frozen=True):
    """The place of a piece of the guest's memory in its QEMU process."""

    address: int
    length: int


class Look(msgspec.Struct, frozen=True):
    """One reading: ``marks`` of the chosen pages, and how many pages of all had any content."""

    seconds: float  # since the first one
    filled_pages: int
    marks: list[int]


class Changed(msgspec.Struct, frozen=True):
    """Changes of the pages that were kept whole: the share of words that differ in those that do, and how well they compress,
    beside how well all of them do."""

    share: float
    compression: float
    still_compression: float


def find_blocks(text: str) -> list[Block]:
    """Pure. From QEMU's ``info ramblock``: name, page size, offset, used, total, host address, access. A name with a slash is a
    device's: reading the registers of a real one may do something."""
    blocks = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 8 and words[-1] == "rw" and words[-2].startswith("0x") and "/" not in words[0]:
            used = int(words[-4], 16)
            if used >= _LEAST_BLOCK_BYTES:
                blocks.append(Block(int(words[-2], 16), used))
    return blocks


async def sample_load(guest: Guest, seconds: float, clock: Clock) -> Load:
    """Sample what the guest does to its memory within ``seconds``. Raises Unavailable if its machine ends before then."""
    process = guest.record.process
    arguments: dict[str, Any] = {"command-line": "info ramblock"}
    answer = await guest.monitor().execute("human-monitor-command", **arguments)
    assert process is not None
    try:
        memory = os.open(f"/proc/{process.pid}/mem", os.O_RDONLY)
        try:
            page_map = os.open(f"/proc/{process.pid}/pagemap", os.O_RDONLY)
            try:
                if not is_alive(process):
                    raise ProcessLookupError(0, "its machine has ended")
                load = await _sample(_Pages(memory, page_map, find_blocks(str(answer))), seconds, clock)
            finally:
                os.close(page_map)
        finally:
            os.close(memory)
        own = [disk for disk in guest.record.plan.disks if not disk.read_only and disk.rbd is None]
        return msgspec.structs.replace(
            load, disk_bytes={disk.serial: os.stat(find_own_file(disk)).st_blocks * 512 for disk in own}
        )
    except OSError as problem:
        raise Unavailable(
            f"vm/{guest.record.plan.name}: its memory can't be read: {problem.strerror}",
            hint="either its machine has ended, or the agent needs root and CAP_SYS_PTRACE",
        ) from problem


async def _sample(pages: _Pages, seconds: float, clock: Clock) -> Load:
    await asyncio.to_thread(pages.choose)
    begun = clock.elapsed()
    looks = [Look(0.0, pages.filled, await asyncio.to_thread(pages.read_marks))]
    kept = await asyncio.to_thread(pages.read_whole)
    for share in LOOKS:
        await clock.sleep(max(0.0, begun + seconds * share - clock.elapsed()))
        at = clock.elapsed() - begun
        marks = await asyncio.to_thread(pages.read_marks)
        looks.append(Look(at, await asyncio.to_thread(pages.count_filled), marks))
    changed = await asyncio.to_thread(lambda: compare_pages(kept, pages.read_whole()))
    return describe_load(looks, changed)


class _Pages:
    """The pages of one guest that are looked at."""

    def __init__(self, memory: int, page_map: int, blocks: list[Block]) -> None:
        self._memory, self._page_map, self._blocks = memory, page_map, blocks
        self._chosen: list[int] = []
        self.filled = 0

    def choose(self) -> None:
        """Evenly among those with any content, and the same each time for the same content."""
        maps = [(block, self._read_map(block)) for block in self._blocks]
        self.filled = sum(map_.count(1) for _, map_ in maps)
        share = min(1.0, MOST_PAGES / max(1, self.filled))
        draw = random.Random(self.filled)  # noqa: S311 (a sample)
        chosen: list[int] = []
        for block, map_ in maps:
            page = map_.find(1)
            while page >= 0:
                if share == 1.0 or draw.random() < share:
                    chosen.append(block.address + page * PAGE_BYTES)
                page = map_.find(1, page + 1)
        draw.shuffle(chosen)
        self._chosen = chosen

    def count_filled(self) -> int:
        return sum(self._read_map(block).count(1) for block in self._blocks)

    def read_marks(self) -> list[int]:
        return [zlib.crc32(os.pread(self._memory, PAGE_BYTES, address)) for address in self._chosen]

    def read_whole(self) -> bytearray:
        kept = bytearray(min(WHOLE_PAGES, len(self._chosen)) * PAGE_BYTES)
        window = memoryview(kept)
        for number, address in enumerate(self._chosen[:WHOLE_PAGES]):
            os.preadv(self._memory, [window[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]], address)
        return kept

    def _read_map(self, block: Block) -> bytes:
        """A byte for each page: 1 if it has any content. Each entry's highest byte has the two bits that say so."""
        begin, end = (
            position // PAGE_BYTES * _ENTRY_BYTES for position in (block.address, block.address + block.length)
        )
        found = []
        for position in range(begin, end, _PIECE_BYTES):
            piece = os.pread(self._page_map, min(_PIECE_BYTES, end - position), position)
            found.append(piece[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(_HAS_CONTENT))
        return b"".join(found)


def compare_pages(before: bytearray, after: bytearray) -> Changed:
    """Pure. Both hold the same pages, one after the other."""
    words = PAGE_BYTES // 8
    old, new = memoryview(before).cast("Q"), memoryview(after).cast("Q")
    shares: list[float] = []
    changed, still = bytearray(), bytearray()
    for number in range(len(before) // PAGE_BYTES):
        here = slice(number * PAGE_BYTES, (number + 1) * PAGE_BYTES)
        if before[here] != after[here]:
            there = slice(number * words, (number + 1) * words)
            if len(shares) < 4 * COMPRESSED_PAGES:
                shares.append(sum(map(ne, array("Q", old[there]), array("Q", new[there]))) / words)
            if len(changed) < COMPRESSED_PAGES * PAGE_BYTES:
                changed += after[here]
        if len(still) < 2 * COMPRESSED_PAGES * PAGE_BYTES and any(after[here]):
            still += after[here]
    return Changed(math.fsum(shares) / len(shares) if shares else 0.0, _compression(changed), _compression(still))


def _compression(content: bytearray) -> float:
    return len(content) / len(zlib.compress(content, 1)) if content else 1.0


def describe_load(looks: list[Look], changed: Changed) -> Load:
    """Pure. What the readings say of all the memory. Zero pages aren't sent, so they don't count."""
    first, last = looks[0], looks[-1]
    chosen = max(1, len(first.marks))
    each = first.filled_pages / chosen * PAGE_BYTES  # bytes that one of the chosen pages stands for
    memory = (
        sum(mark != _ZERO for mark in last.marks) * each + max(0, last.filled_pages - first.filled_pages) * PAGE_BYTES
    )

    def written(before: Look, after: Look) -> float:
        new = max(0, after.filled_pages - before.filled_pages) * PAGE_BYTES
        differing = sum(mark != mark_before for mark, mark_before in zip(after.marks, before.marks, strict=True))
        return differing * each + new

    pairs = list(itertools.pairwise(looks))
    rates = [written(before, after) / max(1e-6, after.seconds - before.seconds) for before, after in pairs]
    mean = math.fsum(rates) / len(rates)
    deviation = math.sqrt(math.fsum((rate - mean) ** 2 for rate in rates) / len(rates))
    whole = written(first, last)
    return Load(
        memory_bytes=int(memory),
        dirty_bytes_per_second=whole / max(1e-6, last.seconds),
        written_bytes=int(min(memory, _find_set(written(first, looks[-2]), whole, memory))),
        changed_share=changed.share,
        compression=changed.compression,
        still_compression=changed.still_compression,
        samples=len(pairs),
        spread=deviation / mean if mean else 0.0,
    )


def _find_set(half: float, whole: float, memory: float) -> float:
    """How much is written to at all, from what has been after half the time and after all of it: random writes to a set W come to
    ``W (1 - exp(-t))``. Where twice the time gives nearly twice as much, the end of the set isn't in sight."""
    if whole <= 0:
        return 0.0
    grown = whole / half if half > 0 else 2.0
    if grown >= 1.85:
        return memory
    return max(whole, half / (1 - math.exp(math.log(max(1e-3, grown - 1)))))
