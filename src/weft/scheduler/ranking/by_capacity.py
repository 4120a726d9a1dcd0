"""Shelves of nodes of one capacity each, the emptiest first: a request adds the same to the scores of a whole shelf, so its order
is the same for every request, and the best node of a fabric of few capacities is found without scoring all of them.

An entry is one whole number, base score and row in one: the largest is the best, and of equals the first row. The best
come last. A shelf is cut into blocks, so that inserting an entry changes only one block, however many nodes there are.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import add

import numpy as np

from weft.contracts.policy import Amounts, Flags, Values, Whole

MOST = 24  # with more shelves, checking each would take longer than scoring all nodes
BITS = 20
ROW = (1 << BITS) - 1
NOT_FOUND = 1 << 100  # more than any entry
_PATIENCE = 100
_BLOCK = 256  # entries; a block of twice as many is cut in two
NONE = -NOT_FOUND  # less than any entry


class CapacityGroup:
    """Entries in order. ``head`` is the last, NONE if there is none."""

    __slots__ = ("_blocks", "_starts", "head")

    def __init__(self, entries: list[int]) -> None:
        self._blocks = [entries[start : start + _BLOCK] for start in range(0, len(entries), _BLOCK)] or [[]]
        # Of each block what is not more than its first entry, and more than the last of the block before.
        self._starts = [NONE, *(block[0] for block in self._blocks[1:])]
        self.head = entries[-1] if entries else NONE

    def __reversed__(self) -> Iterator[int]:
        for block in reversed(self._blocks):
            yield from reversed(block)

    def shift(self, former: int, entry: int) -> None:
        """``entry`` in place of the entry ``former``, which is there."""
        blocks, starts = self._blocks, self._starts
        block = blocks[-1]
        if former == self.head:
            block.pop()
            at = len(blocks) - 1
        else:
            at = bisect_right(starts, former) - 1
            block = blocks[at]
            del block[bisect_left(block, former)]
        if not block and at:
            del blocks[at], starts[at]
        at = bisect_right(starts, entry) - 1
        block = blocks[at]
        insort(block, entry)
        if len(block) >= 2 * _BLOCK:
            blocks[at : at + 1] = block[:_BLOCK], block[_BLOCK:]
            starts.insert(at + 1, block[_BLOCK])
        self.head = blocks[-1][-1]


class NodesByCapacity:
    """The rows of ``mask``; kept true by ``shift``. ``base`` scores are whole, ``shapes`` (``count`` of them) stay as they are."""

    def __init__(self, base: Values, shapes: Whole, count: int, mask: Flags) -> None:
        entries: Whole = (base.astype(np.int64) << BITS) + (ROW - np.arange(base.size))
        self._shelves = [CapacityGroup(np.sort(entries[mask & (shapes == shape)]).tolist()) for shape in range(count)]
        self._heads = [shelf.head for shelf in self._shelves]
        self._mask = mask.data

    def shift(self, row: int, shape: int, former: int, base: int) -> None:
        """Row ``row``, of this shape, has this base score now."""
        if self._mask[row]:
            low = ROW - row
            shelf = self._shelves[shape]
            shelf.shift((former << BITS) + low, (base << BITS) + low)
            self._heads[shape] = shelf.head

    def find(self, shifts: Sequence[int], amounts: Amounts, free: Sequence[memoryview]) -> int:
        """The entry of the best node that has capacity, with what the request adds by shape, shifted by BITS; NONE if there is
        none, NOT_FOUND if it is not among the first."""
        cpu, memory, disk = amounts
        free_cpu, free_memory, free_disk = free
        key = max(map(add, self._heads, shifts), default=NONE)
        row = ROW - (key & ROW)
        if key > NONE >> 1 and free_cpu[row] >= cpu and free_memory[row] >= memory and free_disk[row] >= disk:
            return key
        best = NONE
        patience = _PATIENCE
        for shelf, extra in zip(self._shelves, shifts, strict=False):
            for entry in reversed(shelf):
                key = entry + extra
                if key < best:
                    break
                row = ROW - (entry & ROW)
                if free_cpu[row] >= cpu and free_memory[row] >= memory and free_disk[row] >= disk:
                    best = key
                    break
                patience -= 1
                if not patience:
                    return NOT_FOUND
        return best

    def leaders(self, shifts: Sequence[int], most: int) -> list[int]:
        """The entries of the best nodes, capacity or not, with what the request adds; at most so many, the best first."""
        best: list[int] = []
        for head, shift, shelf in sorted(
            zip(map(add, self._heads, shifts), shifts, self._shelves, strict=False), key=_head, reverse=True
        ):
            if len(best) == most and head < best[-1]:
                break
            best += [entry + shift for entry in islice(reversed(shelf), most)]
            best.sort(reverse=True)
            del best[most:]
        return best


def _head(shelf: tuple[int, int, CapacityGroup]) -> int:
    return shelf[0]
