"""One decision: filters say where a request may go, its policy says where best; ties go to the first by name.

Pure over a snapshot: the same snapshot, request, seed and history give the same answer. Requests that are equal share
their scores; after a placement only the rows that changed are looked at again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from weft.contracts.policy import Column, Filter, Flags, Occasion, Policy, Request, Table, Values
from weft.scheduler.filters import FILTERS
from weft.scheduler.policies import POLICIES
from weft.scheduler.prefer import add_preferences
from weft.scheduler.rows import Rows
from weft.scheduler.snapshot import Snapshot

REFUSED = -1.0
_CLASSES_KEPT = 256


class _Kept:
    """A class's scores as of a place in the snapshot's log."""

    __slots__ = ("epoch", "position", "scores")

    def __init__(self, scores: Values, epoch: int, position: int) -> None:
        self.scores = scores
        self.epoch = epoch
        self.position = position


class Engine:
    """Decides over ``snapshot``. ``last`` is the node chosen most recently."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        seed: int = 0,
        filters: Sequence[Filter] = FILTERS,
        policies: Mapping[str, Policy] = POLICIES,
    ) -> None:
        self.snapshot = snapshot
        self.filters = filters
        self.last: str | None = None
        self._seed = seed
        self._policies = policies
        self._kept: OrderedDict[Request, _Kept] = OrderedDict()

    def choose(self, request: Request, uid: str) -> int | None:
        """The row of the best node for the request of workload ``uid``, or None when none fits."""
        scores = self.scores(request, uid)
        if not scores.size:
            return None
        best = scores.max()
        if best < 0.0:
            return None
        ties = np.flatnonzero(scores == best)
        return int(ties[0] if ties.size == 1 else ties[np.argmin(self.snapshot.rank[ties])])

    def scores(self, request: Request, uid: str) -> Values:
        """Every node's score (0–100), REFUSED where a filter refuses. Not to be changed."""
        snapshot = self.snapshot
        if not self._is_kept(request):
            return self._score(snapshot, request, uid)
        kept = self._kept.get(request)
        if kept is None or kept.epoch != snapshot.epoch:
            kept = self._kept[request] = _Kept(self._score(snapshot, request, uid), snapshot.epoch, len(snapshot.log))
            if len(self._kept) > _CLASSES_KEPT:
                self._kept.popitem(last=False)
            return kept.scores
        self._kept.move_to_end(request)
        if kept.position < len(snapshot.log):
            rows = list(dict.fromkeys(snapshot.log[kept.position :]))
            if len(rows) * 4 > len(snapshot):
                kept.scores = self._score(snapshot, request, uid)
            else:
                kept.scores[rows] = self._score(Rows(snapshot, rows), request, uid)
            kept.position = len(snapshot.log)
        return kept.scores

    def terms(self, request: Request, uid: str, rows: Sequence[int]) -> list[Column]:
        """The terms that make up the scores of these rows."""
        if self._policies[request.strategy].reads != "fabric":
            return self._columns(Rows(self.snapshot, rows), request, uid)
        columns = self._columns(self.snapshot, request, uid)
        return [Column(c.name, c.weight, c.values[list(rows)]) for c in columns]

    def refusers(self, request: Request) -> list[tuple[Filter, Flags]]:
        """For each filter the nodes it is the first to refuse."""
        left = np.ones(len(self.snapshot), dtype=np.bool_)
        refusers: list[tuple[Filter, Flags]] = []
        for filter_ in self.filters:
            if filter_.asks(request) is None:
                continue
            fits = filter_.fits(self.snapshot, request)
            refusers.append((filter_, left & ~fits))
            left = left & fits
        return refusers

    def may_fit(self, request: Request, uids: Sequence[str]) -> bool:
        """Whether any of these nodes passes all filters."""
        rows = [index for uid in uids if (index := self.snapshot.index_of(uid)) is not None]
        if not rows:
            return False
        if self._is_kept(request):
            return bool(self._fits(Rows(self.snapshot, rows), request).any())
        return bool(self._fits(self.snapshot, request)[rows].any())

    def _is_kept(self, request: Request) -> bool:
        """Whether all that bears on it follows from each node by itself."""
        return self._policies[request.strategy].reads != "fabric" and not any(
            filter_.reads == "fabric" and filter_.asks(request) is not None for filter_ in self.filters
        )

    def _fits(self, table: Table, request: Request) -> Flags:
        fits = np.ones(len(table.names), dtype=np.bool_)
        for filter_ in self.filters:
            if filter_.asks(request) is not None:
                fits &= filter_.fits(table, request)
        return fits

    def _columns(self, table: Table, request: Request, uid: str) -> list[Column]:
        columns = self._policies[request.strategy].terms(table, request, Occasion(self._seed, uid, self.last))
        return add_preferences(columns, table, request)

    def _score(self, table: Table, request: Request, uid: str) -> Values:
        columns = self._columns(table, request, uid)
        total = columns[0].weight * columns[0].values
        for column in columns[1:]:
            total = total + column.weight * column.values
        return np.where(self._fits(table, request), total, REFUSED)
