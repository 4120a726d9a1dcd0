"""All nodes as columns: the Table that filters and policies read.

`snapshot.py` fills it; here is how the rows are laid out, and what is read from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.contracts.policy import RESOURCES, Amounts, Codes, Flags, PoolColumn, Texts, Values, Whole
from weft.scheduler.table.columns import Columns
from weft.scheduler.table.devices import Devices, count_free
from weft.scheduler.table.distances import Distances
from weft.scheduler.table.facts import NodeFacts, name_pool
from weft.scheduler.table.memberships import Memberships
from weft.scheduler.table.pools import Pools
from weft.scheduler.table.talkers import Talkers


class NodeTable:
    """``allocated`` is what ``free`` lacks of ``capacity``; ``shapes`` numbers the different capacities, by row, and
    ``shape_capacities`` has the capacity of each number. ``cells`` are the rows of ``free``, for reading one number fast."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.uids: list[str] = []
        self.notes: list[str] = []
        self.facts: list[NodeFacts] = []
        self.facts_epoch = 0  # changes when any fact of any node has changed
        self.groups = Memberships()
        self.pools = Pools()
        self._index: dict[str, int] = {}
        self._capacity = np.zeros((len(RESOURCES), 16), dtype=np.int64)
        self._free = np.zeros((len(RESOURCES), 16), dtype=np.int64)
        self._peaks = np.zeros((2, 16), dtype=np.int64)  # the most cores and memory that leases ever take
        self._shapes = np.zeros(16, dtype=np.int64)
        self.shape_capacities: list[Amounts] = []
        self._online = np.zeros(16, dtype=np.bool_)
        self._cordoned = np.zeros(16, dtype=np.bool_)
        self._machines: dict[str, Flags] = {}
        self._taints: dict[str, Flags] = {}
        self._extras: dict[str, Whole] = {}  # two rows: capacity, allocated
        self._devices = Devices()
        self._columns = Columns()
        self._distances = Distances()
        self.talkers = Talkers()
        self.unreachable: frozenset[str] = frozenset()  # uids of nodes that answer none of their peers
        self._holders: dict[str, set[str]] = {}
        self._rank: Whole | None = None
        self._slice()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def allocated(self) -> Whole:
        return self.capacity - self.free

    @property
    def rank(self) -> Whole:
        if self._rank is None:
            rank = np.empty(len(self), dtype=np.int64)
            rank[self._by_name()] = np.arange(len(self))
            self._rank = rank
        return self._rank

    def machine(self, name: str) -> Flags:
        flags = self._machines.get(name)
        if flags is None:
            return np.zeros(len(self), dtype=np.bool_)
        return flags[: len(self)]

    def taints(self) -> list[tuple[str, Flags]]:
        return [(name, flags[: len(self)]) for name, flags in self._taints.items()]

    def text(self, attribute: str) -> Texts | None:
        return self._columns.text(attribute, self.facts)

    def number(self, attribute: str) -> Values | None:
        name, _, part = attribute.rpartition(".")
        if part != "free" or not name:
            return self._columns.number(attribute, self.facts)
        if name == "gpu":
            free: Values = count_free(self.gpu_free) / 1000.0
            return free if len(self) and (self.gpu_free >= 0).any() else None
        if name in RESOURCES:
            row = RESOURCES.index(name)
            left: Values = self.free[row] / (1000.0 if name == "cpu" else 1.0)
            return left
        if name in self._extras:
            capacity, allocated = self.extra(name)
            return (capacity - allocated).astype(np.float64) if capacity.any() else None
        return self._columns.number(attribute, self.facts)

    def extra(self, name: str) -> tuple[Whole, Whole]:
        both = self._extras.get(name)
        if both is None:
            none = np.zeros(len(self), dtype=np.int64)
            return none, none
        return both[0, : len(self)], both[1, : len(self)]

    def members(self, group: str) -> Whole:
        counts = np.zeros(len(self), dtype=np.int64)
        for uid, names in self.groups.find(group).items():
            index = self._index.get(uid)
            if index is not None:
                counts[index] = len(names)
        return counts

    def holds(self, datum: str) -> Flags:
        flags = np.zeros(len(self), dtype=np.bool_)
        flags[[self._index[uid] for uid in self._holders.get(datum, ())]] = True
        return flags

    def distance(self, uid: str) -> Values:
        """Distance as measured directly, else by the coordinates."""
        return self._distances.of(uid, self.facts, self._index, self.facts_epoch)

    def pool(self, name: str) -> PoolColumn:
        if (ids := self.text(name_pool(name))) is None:
            ids = Texts(np.full(len(self), -1, dtype=np.int32), [], {})
        return PoolColumn(ids, self.pools.left(name, ids), self.pools.find)

    def _slice(self) -> None:
        """Show as many rows as there are."""
        count = len(self)
        self.capacity: Whole = self._capacity[:, :count]
        self.free: Whole = self._free[:, :count]
        self.shapes: Whole = self._shapes[:count]
        self.cells = [row.data for row in self._free]
        self.shape_cells = self._shapes.data
        self.online: Flags = self._online[:count]
        self.cordoned: Flags = self._cordoned[:count]
        self.gpu_free: Codes = self._devices.free[:count]
        self.gpu_memory: Whole = self._devices.memory[:count]
        self.gpu_model: Texts = self._devices.models(count)

    def _by_name(self) -> list[int]:
        return sorted(range(len(self)), key=self.names.__getitem__)

    def _all_columns(self) -> list[NDArray[Any]]:
        """Every array with a number, or several, for each row, which come last in its shape."""
        return [
            self._capacity,
            self._free,
            self._peaks,
            self._shapes,
            self._online,
            self._cordoned,
            *self._machines.values(),
            *self._taints.values(),
            *self._extras.values(),
        ]

    def _extra(self, name: str) -> Whole:
        return self._extras.setdefault(name, np.zeros((2, self._online.size), dtype=np.int64))

    def _put_flags(self, all_flags: dict[str, Flags], index: int, names: frozenset[str]) -> None:
        for name in names - all_flags.keys():
            all_flags[name] = np.zeros(self._online.size, dtype=np.bool_)
        for name, flags in all_flags.items():
            flags[index] = name in names

    def _put_data(self, uid: str, old: frozenset[str], new: frozenset[str]) -> None:
        for datum in old - new:
            self._holders[datum].discard(uid)
            if not self._holders[datum]:
                del self._holders[datum]
        for datum in new - old:
            self._holders.setdefault(datum, set()).add(uid)

    def _grow(self) -> None:
        def more(array: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([array, np.zeros_like(array)], axis=-1)

        self._capacity, self._free = more(self._capacity), more(self._free)
        self._peaks, self._shapes = more(self._peaks), more(self._shapes)
        self._online, self._cordoned = more(self._online), more(self._cordoned)
        self._machines = {name: more(flags) for name, flags in self._machines.items()}
        self._taints = {name: more(flags) for name, flags in self._taints.items()}
        self._extras = {name: more(both) for name, both in self._extras.items()}
