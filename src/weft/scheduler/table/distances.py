"""The distances between nodes in milliseconds: as measured directly, else by their coordinates.

Reads NodeFacts; computed anew only when some fact has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from weft.contracts.policy import Values
from weft.scheduler.table.facts import NodeFacts

_PARTS = 3  # of a coordinate: a position in the plane, and a height
_KEPT = 64  # nodes whose distances are kept


class Distances:
    def __init__(self) -> None:
        self._epoch = -1
        self._places: Values = np.empty((_PARTS, 0))
        self._measured: dict[str, list[tuple[int, float]]] = {}  # uid → rows of those who measured it
        self._kept: dict[str, Values] = {}

    def of(self, uid: str, nodes: Sequence[NodeFacts], rows: Mapping[str, int], epoch: int) -> Values:
        """Distances from node ``uid`` to each of ``nodes``, NaN where unknown; ``rows`` are theirs by uid, ``epoch`` changes with
        any of their facts."""
        if self._epoch != epoch:
            self._read(nodes)
            self._epoch = epoch
        times = self._kept.get(uid)
        if times is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            times = self._kept[uid] = self._find(uid, nodes, rows)
            times.flags.writeable = False
        return times

    def _read(self, nodes: Sequence[NodeFacts]) -> None:
        self._kept.clear()
        self._measured.clear()
        self._places = np.full((_PARTS, len(nodes)), np.nan)
        for row, facts in enumerate(nodes):
            if len(facts.coordinate) == _PARTS:
                self._places[:, row] = facts.coordinate
            for other, time in facts.round_trips.items():
                self._measured.setdefault(other, []).append((row, time))

    def _find(self, uid: str, nodes: Sequence[NodeFacts], rows: Mapping[str, int]) -> Values:
        own = rows.get(uid)
        if own is None:
            return np.full(len(nodes), np.nan)
        x, y, height = self._places
        times: Values = np.hypot(x - x[own], y - y[own]) + height + height[own]
        for row, time in self._measured.get(uid, ()):
            times[row] = time
        for other, time in nodes[own].round_trips.items():
            if other in rows:
                times[rows[other]] = time
        np.maximum(times, 0.0, out=times)  # a node may report any coordinate
        times[own] = 0.0
        return times
