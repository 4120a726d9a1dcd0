"""Nodes of one capacity each on a shelf, the emptiest first: what a request adds to their scores is the same for all of them,
so their order is the same for every request, and the best node of a fabric of few capacities is found without looking
at all of them.

An entry is one whole number, base score and row in one: the largest is the best, and of equals the first row. The best
stand last, as those are what moves, and what stands after them has to be moved along.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from weft.contracts.policy import Amounts, Flags, Values, Whole

MOST = 24  # of more shelves, looking at each would take longer than at all nodes
BITS = 20
ROW = (1 << BITS) - 1
NOT_FOUND = -1
_PATIENCE = 100


class Shelves:
    """The rows of ``mask``; kept true by ``move``. ``base`` scores are whole."""

    def __init__(self, base: Values, shapes: Whole, count: int, mask: Flags) -> None:
        entries: Whole = (base.astype(np.int64) << BITS) + (ROW - np.arange(base.size))
        self._shelves: list[list[int]] = [np.sort(entries[mask & (shapes == shape)]).tolist() for shape in range(count)]
        self._entries: list[int] = entries.tolist()
        self._shapes: list[int] = shapes.tolist()
        self._mask = mask

    def move(self, row: int, base: float, shape: int) -> None:
        """Row ``row`` has this base score and this shape now."""
        if not self._mask[row]:
            return
        former, entry = self._entries[row], (int(base) << BITS) + ROW - row
        if former == entry and self._shapes[row] == shape:
            return
        shelf = self._shelves[self._shapes[row]]
        del shelf[bisect_left(shelf, former)]
        while shape >= len(self._shelves):
            self._shelves.append([])
        insort(self._shelves[shape], entry)
        self._entries[row], self._shapes[row] = entry, shape

    def find(self, deltas: Sequence[int], amounts: Amounts, free: Sequence[memoryview]) -> int | None:
        """The row of the best node that has room, with what the request adds by shape; None if there is
        none, NOT_FOUND if it is not among the first."""
        cpu, memory, disk = amounts
        free_cpu, free_memory, free_disk = free[0], free[1], free[2]
        best: int | None = None
        patience = _PATIENCE
        for shelf, delta in zip(self._shelves, deltas, strict=False):
            shift = delta << BITS
            for entry in reversed(shelf):
                key = entry + shift
                if best is not None and key < best:
                    break
                row = ROW - (entry & ROW)
                if free_cpu[row] >= cpu and free_memory[row] >= memory and free_disk[row] >= disk:
                    best = key
                    break
                patience -= 1
                if not patience:
                    return NOT_FOUND
        return None if best is None else ROW - (best & ROW)
