"""The nodes as numbers, kept up to date by increments: what a placement decision looks at.

Fed with nodes and allocations, in any order and as often as one likes; equal to one built anew from the same objects. All
amounts are whole numbers (thousandths of a core or a GPU, bytes), so sums never drift. ``log`` names every row that
changed, in order, so that whoever keeps something by row knows what to look at again; ``risen`` those that gained room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.contracts.policy import RESOURCES, Amounts, Codes, Flags, GpuAsk, Texts, Values, Whole
from weft.scheduler.columns import Columns
from weft.scheduler.devices import Devices
from weft.scheduler.distances import Distances
from weft.scheduler.facts import NO_LOAD, Gpu, Load, NodeFacts, amounts_of
from weft.scheduler.memberships import Memberships

__all__ = ["Amounts", "Gpu", "Load", "NodeFacts", "Snapshot", "amounts_of"]

LOG_KEPT = 100_000


class Snapshot:
    """A Table of all nodes. ``improved`` collects the uids of nodes that may now take what they refused before.

    ``free`` is ``capacity`` without ``allocated``; ``shapes`` numbers the different capacities, by row, and
    ``shape_capacities`` has the capacity of each number. ``cells`` are the rows of ``free``, then those of ``allocated``, for
    reading one number fast."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.uids: list[str] = []
        self.notes: list[str] = []
        self.facts: list[NodeFacts] = []
        self.log: list[int] = []
        self.risen: list[int] = []
        self.epoch = 0  # moves when rows have moved: what was kept by row is worth nothing then
        self.facts_epoch = 0  # moves when any fact of any node has changed
        self.improved: set[str] = set()
        self._index: dict[str, int] = {}
        self._capacity = np.zeros((len(RESOURCES), 16), dtype=np.int64)
        self._allocated = np.zeros((len(RESOURCES), 16), dtype=np.int64)
        self._free = np.zeros((len(RESOURCES), 16), dtype=np.int64)
        self._shapes = np.zeros(16, dtype=np.int64)
        self._shape_of: dict[Amounts, int] = {}
        self.shape_capacities: list[Amounts] = []
        self._online = np.zeros(16, dtype=np.bool_)
        self._cordoned = np.zeros(16, dtype=np.bool_)
        self._machines: dict[str, Flags] = {}
        self._taints: dict[str, Flags] = {}
        self._extras: dict[str, Whole] = {}  # two rows: capacity, allocated
        self._devices = Devices()
        self._columns = Columns()
        self._distances = Distances()
        self._holders: dict[str, set[str]] = {}
        self.groups = Memberships()
        self._rank: Whole | None = None
        self._ordered = True
        self._allocations: dict[str, tuple[str, Amounts, Load]] = {}
        self._by_node: dict[str, set[str]] = {}
        self._slice()

    def __len__(self) -> int:
        return len(self.names)

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
            free: Values = np.maximum(self.gpu_free, 0).sum(axis=1) / 1000.0
            return free if len(self) and (self.gpu_free >= 0).any() else None
        if name in RESOURCES:
            row = RESOURCES.index(name)
            left: Values = (self.capacity[row] - self.allocated[row]) / (1000.0 if name == "cpu" else 1.0)
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
        """As measured directly where it was, else as far as the coordinates lie apart."""
        return self._distances.of(uid, self.facts, self._index, self.facts_epoch)

    def index_of(self, uid: str) -> int | None:
        """The node's row, which is its own until nodes come or go."""
        self.settle()
        return self._index.get(uid)

    def put_node(self, facts: NodeFacts) -> None:
        """Take a node in, or what is new about it."""
        index = self._index.get(facts.uid)
        old = None if index is None else self.facts[index]
        if old == facts:
            return
        if index is None:
            index = self._add_row(facts)
        if old is None or old.name != facts.name:
            self.names[index] = facts.name
            self._rank = None
            self._ordered = self._ordered and self._stands_right(index)
        self.facts[index] = facts
        self.facts_epoch += 1
        self.notes[index] = facts.note
        self._put_capacity(index, facts.given())
        self._online[index] = facts.online
        self._cordoned[index] = facts.cordoned
        self._put_flags(self._machines, index, facts.machines)
        self._put_flags(self._taints, index, facts.taints)
        self._put_data(facts.uid, frozenset() if old is None else old.data, facts.data)
        if old is None or (old.extras, old.gpus, old.overcommit) != (facts.extras, facts.gpus, facts.overcommit):
            self._put_devices(index, facts)
        self._columns.put(index, facts)
        self._note(index, True)
        if facts.online and not facts.cordoned:
            self.improved.add(facts.uid)

    def drop_node(self, uid: str) -> None:
        """Take a node out; its allocations are kept in mind in case it comes back."""
        index = self._index.pop(uid, None)
        if index is None:
            return
        self._put_data(uid, self.facts[index].data, frozenset())
        last = len(self) - 1
        for texts in (self.names, self.uids, self.notes):
            texts[index] = texts[last]
            texts.pop()
        self.facts[index] = self.facts[last]
        self.facts.pop()
        if index != last:
            self._index[self.uids[index]] = index
            for columns in self._all_columns():
                columns[..., index] = columns[..., last]
            self._devices.move(last, index)
            self._columns.put(index, self.facts[index])
            self._ordered = False
        self._slice()
        self._rank = None
        self.epoch += 1
        self.facts_epoch += 1
        self.improved.discard(uid)

    def settle(self) -> None:
        """Put the rows into the order of the names, if they aren't: then the first of several that are as good is also the
        first by name."""
        if self._ordered:
            return
        order = self._by_name()
        self.names, self.uids, self.notes, self.facts = (
            [self.names[i] for i in order],
            [self.uids[i] for i in order],
            [self.notes[i] for i in order],
            [self.facts[i] for i in order],
        )
        self._index = {uid: index for index, uid in enumerate(self.uids)}
        for columns in self._all_columns():
            columns[..., : len(order)] = columns[..., order]
        self._devices.reorder(order)
        self._columns = Columns()
        self._rank = None
        self._ordered = True
        self.epoch += 1
        self.facts_epoch += 1

    def put_allocation(self, name: str, node_uid: str, amounts: Amounts, load: Load = NO_LOAD) -> None:
        """Count an allocation; counted already is fine."""
        old = self._allocations.get(name)
        if old == (node_uid, amounts, load):
            return
        if old is not None:
            self.drop_allocation(name)
        self._allocations[name] = (node_uid, amounts, load)
        self._by_node.setdefault(node_uid, set()).add(name)
        self._count(node_uid, amounts, load, 1)

    def drop_allocation(self, name: str) -> None:
        """Count it no longer; not counted is fine."""
        old = self._allocations.pop(name, None)
        if old is None:
            return
        node_uid, amounts, load = old
        names = self._by_node[node_uid]
        names.discard(name)
        if not names:
            del self._by_node[node_uid]
        self._count(node_uid, amounts, load, -1)
        if node_uid in self._index:
            self.improved.add(node_uid)

    def _count(self, node_uid: str, amounts: Amounts, load: Load, sign: int) -> None:
        index = self._index.get(node_uid)
        if load.groups:
            (self.groups.add if sign > 0 else self.groups.remove)(node_uid, load)
        if index is None:
            return
        cpu, memory, disk = amounts
        free_cpu, free_memory, free_disk, used_cpu, used_memory, used_disk = self.cells
        if sign < 0:
            cpu, memory, disk = -cpu, -memory, -disk
        free_cpu[index] -= cpu
        free_memory[index] -= memory
        free_disk[index] -= disk
        used_cpu[index] += cpu
        used_memory[index] += memory
        used_disk[index] += disk
        for name, amount in load.extras:
            self._extra(name)[1, index] += amount * sign
        for device, share in load.gpus:
            self._devices.take(index, device, share * sign)
        self._note(index, sign < 0)

    def _slice(self) -> None:
        """Show as many rows as there are."""
        count = len(self)
        self.capacity: Whole = self._capacity[:, :count]
        self.allocated: Whole = self._allocated[:, :count]
        self.free: Whole = self._free[:, :count]
        self.shapes: Whole = self._shapes[:count]
        self.cells = [row.data for row in (*self._free, *self._allocated)]
        self.shape_cells = self._shapes.data
        self.online: Flags = self._online[:count]
        self.cordoned: Flags = self._cordoned[:count]
        self.gpu_free: Codes = self._devices.free[:count]
        self.gpu_memory: Whole = self._devices.memory[:count]
        self.gpu_model: Texts = self._devices.models(count)

    def _note(self, index: int, gained: bool) -> None:
        if len(self.log) >= LOG_KEPT:
            self.log.clear()
            self.risen.clear()
            self.epoch += 1
        self.log.append(index)
        if gained:
            self.risen.append(index)

    def _by_name(self) -> list[int]:
        return sorted(range(len(self)), key=self.names.__getitem__)

    def _stands_right(self, index: int) -> bool:
        names = self.names
        return (not index or names[index - 1] < names[index]) and (
            index + 1 == len(names) or names[index] < names[index + 1]
        )

    def _all_columns(self) -> list[NDArray[Any]]:
        """Every array with a number, or several, for each row, which come last in its shape."""
        return [
            self._capacity,
            self._allocated,
            self._free,
            self._shapes,
            self._online,
            self._cordoned,
            *self._machines.values(),
            *self._taints.values(),
            *self._extras.values(),
        ]

    def _put_capacity(self, index: int, capacity: Amounts) -> None:
        self._capacity[:, index] = capacity
        self._free[:, index] = self._capacity[:, index] - self._allocated[:, index]
        shape = self._shape_of.get(capacity)
        if shape is None:
            if len(self._shape_of) >= max(256, 4 * len(self)):  # most of them are of the past
                self._shape_of.clear()
                self.shape_capacities.clear()
                self.epoch += 1
                for row in range(len(self)):
                    self._number_shape(row, self.facts[row].given())
            self._number_shape(index, capacity)
        else:
            self._shapes[index] = shape

    def _number_shape(self, index: int, capacity: Amounts) -> None:
        shape = self._shape_of.setdefault(capacity, len(self.shape_capacities))
        if shape == len(self.shape_capacities):
            self.shape_capacities.append(capacity)
        self._shapes[index] = shape

    def _add_row(self, facts: NodeFacts) -> int:
        index = len(self)
        if index == self._online.size:
            self._grow()
        self.names.append("")
        self.uids.append(facts.uid)
        self.notes.append("")
        self.facts.append(facts)
        self._index[facts.uid] = index
        self._allocated[:, index] = _sum(self._allocations[name][1] for name in self._by_node.get(facts.uid, ()))
        self._rank = None
        self.epoch += 1
        self._slice()
        return index

    def _put_devices(self, index: int, facts: NodeFacts) -> None:
        """Extras and GPUs of a row from its facts, and what all its allocations take of them."""
        for both in self._extras.values():
            both[:, index] = 0
        for name in facts.extras:
            self._extra(name)[0, index] = facts.given_extra(name)
        self._devices.put(index, facts.gpus)
        for allocation in self._by_node.get(facts.uid, ()):
            load = self._allocations[allocation][2]
            for name, amount in load.extras:
                self._extra(name)[1, index] += amount
            for device, share in load.gpus:
                self._devices.take(index, device, share)
        self._slice()

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

        self._capacity, self._allocated, self._free = more(self._capacity), more(self._allocated), more(self._free)
        self._shapes = more(self._shapes)
        self._online, self._cordoned = more(self._online), more(self._cordoned)
        self._machines = {name: more(flags) for name, flags in self._machines.items()}
        self._taints = {name: more(flags) for name, flags in self._taints.items()}
        self._extras = {name: more(both) for name, both in self._extras.items()}


def _sum(amounts: Iterable[Amounts]) -> Amounts:
    cpu = memory = disk = 0
    for a in amounts:
        cpu, memory, disk = cpu + a[0], memory + a[1], disk + a[2]
    return cpu, memory, disk


@contextmanager
def without(snapshot: Snapshot, names: Iterable[str]) -> Iterator[None]:
    """For as long as this lasts these allocations count as gone."""
    improved = set(snapshot.improved)
    gone = {name: found for name in names if (found := snapshot._allocations.get(name)) is not None}
    for name in gone:
        snapshot.drop_allocation(name)
    try:
        yield
    finally:
        for name, (node_uid, amounts, load) in gone.items():
            snapshot.put_allocation(name, node_uid, amounts, load)
        snapshot.improved = improved


def state_of(snapshot: Snapshot) -> dict[str, Any]:
    """Node uid → its facts and all that is counted there: what two equal snapshots have in common."""
    return {
        uid: (
            snapshot.facts[index],
            snapshot.allocated[:, index].tolist(),
            snapshot.free[:, index].tolist(),
            {name: int(both[1, index]) for name, both in snapshot._extras.items() if both[:, index].any()},
            snapshot.gpu_free[index, : len(snapshot.facts[index].gpus)].tolist(),
            snapshot.groups.on(uid),
        )
        for uid, index in snapshot._index.items()
    }


def asks_of(snapshot: Snapshot) -> Iterator[tuple[Amounts, GpuAsk | None]]:
    """What was asked for by what is placed, one entry each; models and memory of GPUs aren't known any more."""
    for _, amounts, load in snapshot._allocations.values():
        yield amounts, GpuAsk(len(load.gpus), load.gpus[0][1]) if load.gpus else None
