"""The nodes that fit one class of requests, best first, without looking at all of them for each decision.

A sorted run of what was found when all were looked at, and a heap of those whose score has moved since. An entry is one
whole number, score and row in one, so that the smallest is the best, and of equals the first row. Whether the best entry
still is true is checked when it comes up; what may have become better than its entry is put in beforehand.
"""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace

import numpy as np

from weft.contracts.policy import Amounts, Flags, Whole
from weft.scheduler.slopes import Slopes
from weft.scheduler.snapshot import Snapshot

_BITS = 20
_ROW = (1 << _BITS) - 1
_CHUNK = 512
_MANY = 64


class Ranking:
    """For ``amounts`` on the nodes of ``mask``; keeps the best ``most`` of them at a time."""

    def __init__(self, snapshot: Snapshot, slopes: Slopes, amounts: Amounts, mask: Flags, most: int) -> None:
        self._snapshot = snapshot
        self._slopes = slopes
        self._amounts = amounts
        self._mask = mask
        self._most = most
        self._log = snapshot.risen if slopes.falling else snapshot.log
        self._rank()

    def best(self) -> int | None:
        """The row of the best node, or None. ``slopes`` are up to date."""
        snapshot = self._snapshot
        if self._position < len(self._log):
            self._take_in()
        free_cpu, free_memory, free_disk, _, _, _ = snapshot.cells
        cpu, memory, disk = self._amounts
        base, shapes, deltas = self._slopes.cells, snapshot.shape_cells, self._deltas
        heap = self._heap
        while True:
            if self._next >= len(self._run) and self._rest.size:
                self._unfold()
            from_run = self._next < len(self._run) and (not heap or self._run[self._next] < heap[0])
            if from_run:
                entry = self._run[self._next]
            elif heap:
                entry = heap[0]
            elif self._floor is None:
                return None
            else:
                self._rank()
                heap, deltas = self._heap, self._deltas
                continue
            if self._floor is not None and entry > self._floor:
                self._rank()
                heap, deltas = self._heap, self._deltas
                continue
            row = entry & _ROW
            if free_cpu[row] >= cpu and free_memory[row] >= memory and free_disk[row] >= disk:
                now = (-round(base[row] + deltas[shapes[row]]) << _BITS) + row
                if now == entry:
                    return row
                if from_run:
                    self._next += 1
                    heappush(heap, now)
                else:
                    heapreplace(heap, now)
            elif from_run:
                self._next += 1
            else:
                heappop(heap)

    def _rank(self) -> None:
        """Look at all nodes."""
        snapshot = self._snapshot
        cpu, memory, disk = self._amounts
        free = snapshot.free
        rows = np.flatnonzero(self._mask & (free[0] >= cpu) & (free[1] >= memory) & (free[2] >= disk))
        entries: Whole = rows - (self._slopes.scores(self._amounts)[rows].astype(np.int64) << _BITS)
        self._floor: int | None = None
        if entries.size > self._most:
            entries.partition(self._most)
            self._floor = int(entries[self._most])
            entries = entries[: self._most].copy()
        entries.sort()
        self._deltas = self._slopes.deltas(self._amounts).data
        self._heap: list[int] = []
        self._rest = entries
        self._run: list[int] = []
        self._next = 0
        self._position = len(self._log)

    def _unfold(self) -> None:
        self._run = self._rest[:_CHUNK].tolist()
        self._rest = self._rest[_CHUNK:]
        self._next = 0

    def _take_in(self) -> None:
        """Put in what may have become better than its entry."""
        snapshot = self._snapshot
        rows = self._log[self._position :]
        if len(rows) > _MANY or len(self._heap) > 2 * len(snapshot) + _MANY:
            self._rank()
            return
        self._position = len(self._log)
        cpu, memory, disk = self._amounts
        free_cpu, free_memory, free_disk, _, _, _ = snapshot.cells
        base, shapes, deltas = self._slopes.cells, snapshot.shape_cells, self._deltas
        for row in set(rows):
            if self._mask[row] and free_cpu[row] >= cpu and free_memory[row] >= memory and free_disk[row] >= disk:
                heappush(self._heap, (-round(base[row] + deltas[shapes[row]]) << _BITS) + row)
