"""Some rows of a snapshot, copied out: a Table by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.contracts.policy import Codes, Flags, Table, Texts, Values, Whole


class Rows:
    def __init__(self, table: Table, indexes: Sequence[int]) -> None:
        self._table = table
        self._indexes = np.asarray(indexes, dtype=np.int64)
        self.names = [table.names[i] for i in indexes]
        self.uids = [table.uids[i] for i in indexes]
        self.notes = [table.notes[i] for i in indexes]
        self.capacity: Whole = table.capacity[:, self._indexes]
        self.allocated: Whole = table.allocated[:, self._indexes]
        self.free: Whole = table.free[:, self._indexes]
        self.online: Flags = table.online[self._indexes]
        self.cordoned: Flags = table.cordoned[self._indexes]
        self.rank: Whole = table.rank[self._indexes]
        self.gpu_free: Codes = table.gpu_free[self._indexes]
        self.gpu_memory: Whole = table.gpu_memory[self._indexes]
        self.gpu_model: Texts = self._some(table.gpu_model)
        self.groups = table.groups

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

    def _some(self, texts: Texts) -> Texts:
        return Texts(texts.codes[self._indexes], texts.words, texts.places)
