"""The score of each node by a request's strategy and preferences.

Scores are whole multiples of 1/SCALE before they are scaled to 0–100, so that the order in which floats are added decides nothing.
Preferences that read facts alone are a fixed bonus by node, kept for all requests with the same preferences.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from weft.contracts.policy import Column, Flags, Occasion, Policy, PreferenceTerm, Request, Table, Values
from weft.scheduler.ranking.by_capacity import BITS
from weft.scheduler.ranking.linear_scores import SCALE, LinearScores
from weft.scheduler.table.rows import Rows
from weft.scheduler.table.snapshot import Snapshot

_KEPT = 256
_MOST_PARTS = 8  # with more, checking each would take longer than scoring all nodes


class Bonus:
    """Bonus from the fixed preferences of a request, by row."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self._levels = np.unique(values).tolist()
        self._parts: dict[int, list[tuple[int, Flags]]] = {}
        self._masks: list[Flags] = []  # held, so that no other has its id

    def split(self, mask: Flags) -> list[tuple[int, Flags]]:
        """The nodes of ``mask`` by what is added there, in entries of shelves; empty if that differs too much."""
        parts = self._parts.get(id(mask))
        if parts is None:
            parts = []
            if len(self._levels) <= _MOST_PARTS:
                all_ = [(int(level) << BITS, mask & (self.values == level)) for level in self._levels]
                parts = [(level, part) for level, part in all_ if part.any()] or [(0, mask)]
            if len(self._parts) >= _KEPT:
                self._parts.clear()
                self._masks.clear()
            self._parts[id(mask)] = parts
            self._masks.append(mask)
        return parts


class Bonuses:
    """The bonuses of all combinations of fixed preferences, kept until a fact changes."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._epoch = -1
        self._found: dict[Hashable, Bonus] = {}

    def find(self, request: Request, preferences: Sequence[PreferenceTerm]) -> Bonus:
        asked = tuple([(preference.name, preference.asks(request)) for preference in preferences])
        if self._epoch != self._snapshot.facts_epoch or len(self._found) >= _KEPT:
            self._epoch = self._snapshot.facts_epoch
            self._found.clear()
        found = self._found.get(asked)
        if found is None:
            columns = [column for preference in preferences for column in preference.terms(self._snapshot, request)]
            found = self._found[asked] = Bonus(_add(columns))
        return found


class Score:
    """Score of ``request``, by ``policy`` and ``preferences``; of the first by ``slopes`` where it is linear in a node's load."""

    def __init__(
        self,
        snapshot: Snapshot,
        request: Request,
        policy: Policy,
        preferences: Sequence[PreferenceTerm],
        slopes: LinearScores | None,
        bonuses: Bonuses,
    ) -> None:
        self.slopes = slopes
        self._snapshot = snapshot
        self._request = request
        self._policy = policy
        self._bonuses = bonuses
        self._fixed = [preference for preference in preferences if preference.reads == "facts"]
        self.dynamic = [preference for preference in preferences if preference.reads != "facts"]
        self.total = 1.0 + sum([preference.weight(request) for preference in preferences])  # the strategy counts 1

    def bonus(self) -> Bonus | None:
        """The fixed part of it; None where nothing is fixed."""
        return self._bonuses.find(self._request, self._fixed) if self._fixed else None

    def columns(self, table: Table, occasion: Occasion) -> list[Column]:
        """Its terms, weights summing up to what those of the policy do."""
        columns = self._policy.terms(table, self._request, occasion)
        leant = [column for one in (*self._fixed, *self.dynamic) for column in one.terms(table, self._request)]
        if not leant:
            return columns
        return [Column(column.name, column.weight / self.total, column.values) for column in (*columns, *leant)]

    def find(self, occasion: Occasion, rows: Sequence[int] | None = None) -> Values:
        """The scores of all nodes, or of these, times SCALE, without filters."""
        table: Table = self._snapshot if rows is None else Rows(self._snapshot, rows)
        if self.slopes is None:
            scores = _add(self._policy.terms(table, self._request, occasion))
        else:
            self.slopes.update()
            scores = self.slopes.scores(self._request.amounts, rows)
        bonus = self.bonus()
        if bonus is not None:
            scores += bonus.values if rows is None else bonus.values[rows]
        if self.dynamic:
            scores += _add([column for preference in self.dynamic for column in preference.terms(table, self._request)])
        if self.total != 1.0:
            scores /= self.total
        return scores


def _add(columns: Sequence[Column]) -> Values:
    total = columns[0].weight * columns[0].values
    for column in columns[1:]:
        total = total + column.weight * column.values
    whole: Values = np.rint(total * SCALE)
    return whole
