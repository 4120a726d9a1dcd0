"""Scores that are linear in how full a node is, by row: what a request adds depends on the node's capacity alone.

The score of a node is ``base[row] + delta[shape of row]``, where base follows from its free capacity, and delta from the request.
Both are whole, in units of 1/SCALE: so it is the same whether computed for one row or for all, the order in which floats are
added makes no difference, and ties go to the first by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.contracts.policy import Amounts, Flags, Values
from weft.scheduler.ranking.by_capacity import BITS, MOST, NodesByCapacity
from weft.scheduler.table.snapshot import Snapshot

SCALE = 2.0**20
_MANY = 64
_SELDOM = 8
FAR = 24  # changes: to apply more of them takes longer than to score a thousand nodes anew

Weights = tuple[float, float, float]


class LinearScores:
    """Scores for ``weights`` of RESOURCES: above 0 for how much is used (0–100), below 0 for how much is left."""

    def __init__(self, snapshot: Snapshot, weights: Weights) -> None:
        self.falling = all(weight <= 0.0 for weight in weights)  # whether a score can but fall with what is placed
        self._snapshot = snapshot
        self._weights = weights
        self._epoch = -1
        self._position = 0
        self._far = _SELDOM  # changes of the log: a request that comes less often is not kept in order
        self._due = 0  # when in the log to drop orders that are no longer used
        # By shape: the score with nothing free, and how much a unit of each resource adds when it is taken.
        self._steepness: list[tuple[float, float, float, float]] = []
        self._table: Values = np.zeros((4, 0))
        self.base: Values = np.zeros(0)
        self.cells = self.base.data
        self._orders: dict[int, _Order] = {}
        self._kept: list[tuple[_Order, NodesByCapacity]] = []

    def update(self) -> None:
        """Apply the changes of the snapshot."""
        snapshot = self._snapshot
        now, position = len(snapshot.log), self._position
        if self._epoch != snapshot.epoch or now - position > _MANY + len(snapshot) // 8:
            self._rebuild()
        elif position < now:
            self._position = now
            if now > self._due:
                self._drop_unasked()
            cells, shapes, steepness, kept = self.cells, snapshot.shape_cells, self._steepness, self._kept
            cpu, memory, disk = snapshot.cells
            for row in snapshot.log[position:]:
                shape = shapes[row]
                full, a, b, c = steepness[shape]
                base = round(full - cpu[row] * a - memory[row] * b - disk[row] * c)
                former = int(cells[row])
                if base != former:
                    cells[row] = base
                    for _, shelves in kept:
                        shelves.shift(row, shape, former, base)

    def deltas(self, amounts: Amounts) -> Values:
        """Increase by a request for ``amounts``, by shape."""
        cpu, memory, disk = amounts
        if len(self._steepness) < 16:
            return np.array([float(round(cpu * a + memory * b + disk * c)) for _, a, b, c in self._steepness])
        _, a_, b_, c_ = self._table
        deltas: Values = np.rint(cpu * a_ + memory * b_ + disk * c_)
        return deltas

    def shifts(self, amounts: Amounts) -> list[int]:
        """The same in units of shelf entries."""
        cpu, memory, disk = amounts
        return [round(cpu * a + memory * b + disk * c) << BITS for _, a, b, c in self._steepness]

    def scores(self, amounts: Amounts, rows: Sequence[int] | None = None) -> Values:
        """The score of every row, or of these, once it has ``amounts`` more, times SCALE, whole."""
        deltas = self.deltas(amounts)
        scores: Values
        if rows is not None:
            scores = deltas[self._snapshot.shapes[rows]]
            scores += self.base[rows]
        elif len(deltas) == 1:
            scores = self.base + deltas[0]
        else:
            scores = deltas.take(self._snapshot.shapes, mode="clip")
            scores += self.base
        return scores

    def sort(self, mask: Flags) -> NodesByCapacity | None:
        """The nodes of ``mask``, the emptiest first, if they are used so often that keeping them in order takes less time than
        scoring all nodes. Up to date while this is."""
        found = self._orders.get(id(mask))
        if found is None:
            if len(self._orders) >= _MANY:
                self._orders.clear()
                self._kept.clear()
            found = self._orders[id(mask)] = _Order(mask)
        if self._position - found.asked > self._far:
            found.near = 0
        found.asked = self._position
        if found.shelves is None and self.falling and len(self._steepness) <= MOST:
            found.near += 1
            if found.near > 2:
                found.shelves = NodesByCapacity(self.base, self._snapshot.shapes, len(self._steepness), mask)
                self._kept.append((found, found.shelves))
        return found.shelves

    def _drop_unasked(self) -> None:
        """Drop orders that are no longer used: to keep them takes longer than to sort again."""
        long_ago = self._position - self._far
        for order, _ in self._kept:
            if order.asked < long_ago:
                order.shelves = None
        self._kept = [kept for kept in self._kept if kept[0].shelves is not None]
        self._due = self._position + self._far

    def _rebuild(self) -> None:
        snapshot = self._snapshot
        self._measure_shapes()
        full, a, b, c = self._table.take(snapshot.shapes, axis=1)
        cpu, memory, disk = snapshot.free
        self.base = np.rint(full - cpu * a - memory * b - disk * c)
        self.cells = self.base.data
        self._far = _SELDOM + len(snapshot) // 200
        self._orders.clear()
        self._kept.clear()
        self._epoch, self._position = snapshot.epoch, len(snapshot.log)
        self._due = self._position + self._far

    def _measure_shapes(self) -> None:
        self._steepness = []
        at_rest = sum(-weight for weight in self._weights if weight < 0.0)  # what a node has that gives nothing away
        for capacity in self._snapshot.shape_capacities:
            a, b, c = (w * SCALE * 100.0 / max(amount, 1) for w, amount in zip(self._weights, capacity, strict=True))
            cpu, memory, disk = capacity
            self._steepness.append((at_rest * SCALE * 100.0 + cpu * a + memory * b + disk * c, a, b, c))
        self._table = np.array(self._steepness, dtype=np.float64).reshape(-1, 4).T.copy()


class _Order:
    """One mask's order: shelves, when in the log they were last ``asked`` for, and how often in a row soon after (``near``)."""

    __slots__ = ("asked", "mask", "near", "shelves")

    def __init__(self, mask: Flags) -> None:
        self.mask = mask  # held, so that no other has its id
        self.asked = 0
        self.near = 0
        self.shelves: NodesByCapacity | None = None
