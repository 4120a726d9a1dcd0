"""The nodes that fit one class of requests, best first, without scoring all of them for each decision.

A sorted run from when all were scored, and a heap of those whose score has changed since. An entry is one whole number, score and
row in one, so that the smallest is the best, and of equals the first row. Whether the best entry still holds is checked when it
comes up; a node that may have become better than its entry gets a new one beforehand.
"""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace

import numpy as np

from weft.contracts.policy import Amounts, Flags, Values, Whole
from weft.scheduler.ranking.by_capacity import BITS, ROW
from weft.scheduler.ranking.linear_scores import LinearScores
from weft.scheduler.table.snapshot import Snapshot

_CHUNK = 512
_MANY = 64
_NONE = 1 << 62


class Ranking:
    """Ranking for ``amounts`` on the nodes of ``mask``, ``bonus`` added; keeps the best ``most`` of them at a time."""

    def __init__(
        self, snapshot: Snapshot, slopes: LinearScores, amounts: Amounts, mask: Flags, bonus: Values, most: int
    ) -> None:
        self._snapshot = snapshot
        self._bonus = bonus
        self._slopes = slopes
        self._amounts = amounts
        self._mask = mask
        self._most = most
        self._log = snapshot.risen if slopes.falling else snapshot.log
        self._next = 0
        self._rank()

    def best(self) -> int | None:
        """The row of the best node, or None. ``slopes`` are up to date."""
        snapshot = self._snapshot
        if self._position < len(self._log):
            self._take_in()
        free_cpu, free_memory, free_disk = snapshot.cells
        cpu, memory, disk = self._amounts
        base, shapes, deltas, bonus = self._slopes.cells, snapshot.shape_cells, self._deltas, self._bonus.data
        heap, run, at, after = self._heap, self._run, self._next, self._after
        # Written for speed: with several classes, most of the time goes into rows that other classes have changed.
        while True:
            entry = run[at] if at < len(run) else after
            from_heap = bool(heap) and heap[0] < entry
            if from_heap:
                entry = heap[0]
            elif at == len(run):
                if not self._unfold():
                    return None
                heap, run, at, after, deltas = self._heap, self._run, 0, self._after, self._deltas
                continue
            row = entry & ROW
            if free_cpu[row] >= cpu and free_memory[row] >= memory and free_disk[row] >= disk:
                now = (-int(base[row] + deltas[shapes[row]] + bonus[row]) << BITS) + row
                if now == entry:
                    self._next = at
                    return row
                if from_heap:
                    heapreplace(heap, now)
                else:
                    at += 1
                    heappush(heap, now)
            elif from_heap:
                heappop(heap)
            else:
                at += 1

    def _rank(self) -> None:
        """Score all nodes."""
        snapshot = self._snapshot
        cpu, memory, disk = self._amounts
        free = snapshot.free
        rows = np.flatnonzero(self._mask & (free[0] >= cpu) & (free[1] >= memory) & (free[2] >= disk))
        scores = self._slopes.scores(self._amounts) + self._bonus
        entries: Whole = rows - (scores[rows].astype(np.int64) << BITS)
        self._floor: int | None = None
        if entries.size > self._most:
            entries.partition(self._most)
            self._floor = int(entries[self._most])
            entries = entries[: self._most].copy()
        entries.sort()
        self._deltas = self._slopes.deltas(self._amounts).data
        self._heap: list[int] = []
        self._lay_out(entries[:0], entries)
        self._position = len(self._log)

    def _lay_out(self, run: Whole, rest: Whole) -> None:
        self._run: list[int] = run.tolist()
        self._rest = rest
        self._next = 0
        # What comes after the run, at best.
        self._after: int = int(rest[0]) if rest.size else _NONE if self._floor is None else self._floor

    def _unfold(self) -> bool:
        """Continue the run, if need be with new scores of all nodes; whether it or the heap has any entry."""
        if not self._rest.size and self._floor is not None:
            self._rank()
        self._lay_out(self._rest[:_CHUNK], self._rest[_CHUNK:])
        return bool(self._run or self._heap)

    def _take_in(self) -> None:
        """Put in nodes that may have become better than their entry."""
        snapshot = self._snapshot
        rows = self._log[self._position :]
        if len(rows) > _MANY or len(self._heap) > 2 * len(snapshot) + _MANY:
            self._rank()
            return
        self._position = len(self._log)
        cpu, memory, disk = self._amounts
        free_cpu, free_memory, free_disk = snapshot.cells
        base, shapes, deltas, bonus = self._slopes.cells, snapshot.shape_cells, self._deltas, self._bonus.data
        for row in set(rows):
            if self._mask[row] and free_cpu[row] >= cpu and free_memory[row] >= memory and free_disk[row] >= disk:
                heappush(self._heap, (-int(base[row] + deltas[shapes[row]] + bonus[row]) << BITS) + row)
