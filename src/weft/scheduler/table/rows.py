"""Some rows of a snapshot: a Table by itself, each column copied out when it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weft.contracts.policy import Codes, Flags, PoolColumn, Table, Texts, Values, Whole

_BY_RESOURCE = ("capacity", "free", "used")  # one row each, and one column per node


class Rows:
    names: list[str]
    uids: list[str]
    notes: list[str]
    capacity: Whole
    free: Whole
    used: Whole
    measured: Flags
    online: Flags
    cordoned: Flags
    rank: Whole
    gpu_free: Codes
    gpu_memory: Whole

    def __init__(self, table: Table, indexes: Sequence[int]) -> None:
        self._table = table
        self._indexes = np.asarray(indexes, dtype=np.int64)
        self.groups = table.groups
        self.talkers = getattr(table, "talkers", None)

    def __getattr__(self, name: str) -> Any:
        """A column that wasn't requested before."""
        column = getattr(self._table, name)
        if isinstance(column, list):
            some: Any = [column[i] for i in self._indexes.tolist()]
        else:
            some = column[:, self._indexes] if name in _BY_RESOURCE else column[self._indexes]
        setattr(self, name, some)
        return some

    @property
    def allocated(self) -> Whole:
        return self.capacity - self.free

    @property
    def gpu_model(self) -> Texts:
        return self._some(self._table.gpu_model)

    def machine(self, name: str) -> Flags:
        return self._table.machine(name)[self._indexes]

    def taints(self) -> list[tuple[str, Flags]]:
        return [(name, flags[self._indexes]) for name, flags in self._table.taints()]

    def text(self, attribute: str) -> Texts | None:
        texts = self._table.text(attribute)
        return None if texts is None else self._some(texts)

    def number(self, attribute: str) -> Values | None:
        values = self._table.number(attribute)
        return None if values is None else values[self._indexes]

    def extra(self, name: str) -> tuple[Whole, Whole]:
        capacity, allocated = self._table.extra(name)
        return capacity[self._indexes], allocated[self._indexes]

    def members(self, group: str) -> Whole:
        return self._table.members(group)[self._indexes]

    def holds(self, datum: str) -> Flags:
        return self._table.holds(datum)[self._indexes]

    def distance(self, uid: str) -> Values:
        return self._table.distance(uid)[self._indexes]

    def pool(self, name: str) -> PoolColumn:
        column = self._table.pool(name)
        return PoolColumn(self._some(column.ids), column.left[self._indexes], column.bound)

    def _some(self, texts: Texts) -> Texts:
        return Texts(texts.codes[self._indexes], texts.words, texts.places)
