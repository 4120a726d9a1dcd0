"""Scores that are linear in how full a node is, by row: what a request adds depends on the node's capacity alone.

The score of a node is ``base[row] + delta[shape of row]``, where base follows from what is allocated there, and delta from
what is asked for. Both are whole, in units of 1/SCALE: so it is the same whether computed for one row or for all, what is
equal but for how floats were added is equal, and goes to the first by name.
"""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import Amounts, Flags, Values
from weft.scheduler.shelves import MOST, Shelves
from weft.scheduler.snapshot import Snapshot

SCALE = 2.0**20
_MANY = 64
FAR = 24  # changes: to take in more of them takes longer than to look at a thousand nodes anew

Weights = tuple[float, float, float]


class Slopes:
    """For ``weights`` of RESOURCES: above 0 for how much is used (0–100), below 0 for how much is left."""

    def __init__(self, snapshot: Snapshot, weights: Weights) -> None:
        self.falling = all(weight <= 0.0 for weight in weights)  # whether a score can but fall with what is placed
        self._snapshot = snapshot
        self._weights = weights
        self._constant = SCALE * 100.0 * sum(-weight for weight in weights if weight < 0.0)
        self._epoch = -1
        self._position = 0
        self._steepness: list[Weights] = []  # by shape: how much a unit of each resource adds
        self._table: Values = np.zeros((3, 0))
        self.base: Values = np.zeros(0)
        self.cells = self.base.data
        self._sorted: dict[int, _Sorted] = {}

    def update(self) -> None:
        """Take in what has changed in the snapshot."""
        snapshot = self._snapshot
        log = snapshot.log
        if self._epoch != snapshot.epoch or len(log) - self._position > _MANY + len(snapshot) // 8:
            self._rebuild()
        elif self._position < len(log):
            if len(self._steepness) < len(snapshot.shape_capacities):
                self._measure_shapes()
            cells, shapes, steepness, constant = self.cells, snapshot.shape_cells, self._steepness, self._constant
            _, _, _, cpu, memory, disk = snapshot.cells
            for row in log[self._position :]:
                a, b, c = steepness[shapes[row]]
                cells[row] = round(constant + cpu[row] * a + memory[row] * b + disk[row] * c)
            self._position = len(log)

    def deltas(self, amounts: Amounts) -> Values:
        """What a request for ``amounts`` adds, by shape."""
        cpu, memory, disk = amounts
        if len(self._steepness) < 16:
            return np.array([float(round(cpu * a + memory * b + disk * c)) for a, b, c in self._steepness])
        a_, b_, c_ = self._table
        deltas: Values = np.rint(cpu * a_ + memory * b_ + disk * c_)
        return deltas

    def list_deltas(self, amounts: Amounts) -> list[int]:
        """The same as whole numbers."""
        cpu, memory, disk = amounts
        return [round(cpu * a + memory * b + disk * c) for a, b, c in self._steepness]

    def scores(self, amounts: Amounts) -> Values:
        """The score of every row once it has ``amounts`` more, times SCALE, whole."""
        deltas = self.deltas(amounts)
        scores: Values
        if len(deltas) == 1:
            scores = self.base + deltas[0]
        else:
            scores = deltas.take(self._snapshot.shapes, mode="clip")
            scores += self.base
        return scores

    def sort(self, mask: Flags) -> Shelves | None:
        """The nodes of ``mask``, the emptiest first: if that helps, and it is asked for so often that to keep them in order
        takes less time than to look at all nodes. Up to date if this is."""
        snapshot = self._snapshot
        now = len(snapshot.log)
        found = self._sorted.get(id(mask))
        if found is None:
            if len(self._sorted) >= _MANY:
                self._sorted.clear()
            found = self._sorted[id(mask)] = _Sorted(mask, now)
        changed, found.position = snapshot.log[found.position :], now
        if found.epoch != snapshot.epoch or len(changed) > FAR + len(snapshot) // 200:
            found.epoch, found.near, found.shelves = snapshot.epoch, 0, None
        if found.shelves is not None:
            for row in changed:
                found.shelves.move(row, self.cells[row], snapshot.shape_cells[row])
        elif self.falling and len(self._steepness) <= MOST:
            found.near += 1
            if found.near > 2:
                found.shelves = Shelves(self.base, snapshot.shapes, len(self._steepness), mask)
        return found.shelves

    def _rebuild(self) -> None:
        snapshot = self._snapshot
        self._steepness = []
        self._measure_shapes()
        a, b, c = self._table.take(snapshot.shapes, axis=1)
        cpu, memory, disk = snapshot.allocated
        self.base = np.rint(self._constant + cpu * a + memory * b + disk * c)
        self.cells = self.base.data
        self._epoch, self._position = snapshot.epoch, len(snapshot.log)

    def _measure_shapes(self) -> None:
        scale = SCALE * 100.0
        x, y, z = (weight * scale for weight in self._weights)
        for cpu, memory, disk in self._snapshot.shape_capacities[len(self._steepness) :]:
            self._steepness.append((x / max(cpu, 1), y / max(memory, 1), z / max(disk, 1)))
        self._table = np.array(self._steepness, dtype=np.float64).reshape(-1, 3).T.copy()


class _Sorted:
    """The shelves of one mask, as of a position in the log; ``near`` how often in a row it was asked for soon after."""

    __slots__ = ("epoch", "mask", "near", "position", "shelves")

    def __init__(self, mask: Flags, position: int) -> None:
        self.mask = mask  # held, so that no other has its id
        self.position = position
        self.epoch = -1
        self.near = 0
        self.shelves: Shelves | None = None
