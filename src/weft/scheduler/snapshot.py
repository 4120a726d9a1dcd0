"""The nodes as numbers, kept up to date by increments: what a placement decision looks at.

Fed with nodes and allocations, in any order and as often as one likes; equal to one built anew from the same objects. All
amounts are whole numbers (thousandths of a core, bytes), so sums never drift. ``log`` names every row that changed, in
order, so that whoever keeps something by row knows what to look at again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from weft.contracts.policy import RESOURCES, Flags, Whole
from weft.kinds.allocation import Resources

Amounts = tuple[int, int, int]


class NodeFacts(msgspec.Struct, frozen=True):
    """What placement needs to know of one node."""

    uid: str
    name: str
    capacity: Amounts
    online: bool
    cordoned: bool
    machines: frozenset[str]
    note: str = ""


def amounts_of(resources: Resources) -> Amounts:
    """Resources in the units of the table."""
    return (round(resources.cpu * 1000), int(resources.memory), int(resources.disk))


class Rows:
    """Some nodes' rows, copied out: a Table by itself."""

    def __init__(self, snapshot: Snapshot, indexes: Sequence[int]) -> None:
        self._snapshot = snapshot
        self._indexes = np.asarray(indexes, dtype=np.int64)
        self.names = [snapshot.names[i] for i in indexes]
        self.uids = [snapshot.uids[i] for i in indexes]
        self.notes = [snapshot.notes[i] for i in indexes]
        self.capacity: Whole = snapshot.capacity[:, self._indexes]
        self.allocated: Whole = snapshot.allocated[:, self._indexes]
        self.online: Flags = snapshot.online[self._indexes]
        self.cordoned: Flags = snapshot.cordoned[self._indexes]
        self.rank: Whole = snapshot.rank[self._indexes]

    def machine(self, name: str) -> Flags:
        return self._snapshot.machine(name)[self._indexes]


class Snapshot:
    """A Table of all nodes. ``improved`` collects the uids of nodes that may now take what they refused before."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.uids: list[str] = []
        self.notes: list[str] = []
        self.log: list[int] = []
        self.epoch = 0  # moves when rows have moved: what was kept by row is worth nothing then
        self.improved: set[str] = set()
        self._index: dict[str, int] = {}
        self._nodes: dict[str, NodeFacts] = {}
        self._capacity = np.zeros((len(RESOURCES), 16), dtype=np.int64)
        self._allocated = np.zeros((len(RESOURCES), 16), dtype=np.int64)
        self._online = np.zeros(16, dtype=np.bool_)
        self._cordoned = np.zeros(16, dtype=np.bool_)
        self._machines: dict[str, Flags] = {}
        self._rank: Whole | None = None
        self._allocations: dict[str, tuple[str, Amounts]] = {}
        self._by_node: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def capacity(self) -> Whole:
        return self._capacity[:, : len(self)]

    @property
    def allocated(self) -> Whole:
        return self._allocated[:, : len(self)]

    @property
    def online(self) -> Flags:
        return self._online[: len(self)]

    @property
    def cordoned(self) -> Flags:
        return self._cordoned[: len(self)]

    @property
    def rank(self) -> Whole:
        if self._rank is None:
            rank = np.empty(len(self), dtype=np.int64)
            rank[sorted(range(len(self)), key=self.names.__getitem__)] = np.arange(len(self))
            self._rank = rank
        return self._rank

    def machine(self, name: str) -> Flags:
        flags = self._machines.get(name)
        if flags is None:
            return np.zeros(len(self), dtype=np.bool_)
        return flags[: len(self)]

    def index_of(self, uid: str) -> int | None:
        return self._index.get(uid)

    def holds(self, allocation: str) -> bool:
        return allocation in self._allocations

    def put_node(self, facts: NodeFacts) -> None:
        """Take a node in, or what is new about it."""
        old = self._nodes.get(facts.uid)
        if old == facts:
            return
        self._nodes[facts.uid] = facts
        index = self._index.get(facts.uid)
        if index is None:
            index = self._add_row(facts.uid)
        if old is None or old.name != facts.name:
            self.names[index] = facts.name
            self._rank = None
        self.notes[index] = facts.note
        self._capacity[:, index] = facts.capacity
        self._online[index] = facts.online
        self._cordoned[index] = facts.cordoned
        for machine in facts.machines - self._machines.keys():
            self._machines[machine] = np.zeros(self._online.size, dtype=np.bool_)
        for machine, flags in self._machines.items():
            flags[index] = machine in facts.machines
        self.log.append(index)
        if facts.online and not facts.cordoned:
            self.improved.add(facts.uid)

    def drop_node(self, uid: str) -> None:
        """Take a node out; its allocations are kept in mind in case it comes back."""
        index = self._index.pop(uid, None)
        if index is None:
            return
        del self._nodes[uid]
        last = len(self) - 1
        if index != last:
            moved = self.uids[last]
            self.names[index], self.uids[index], self.notes[index] = self.names[last], moved, self.notes[last]
            self._index[moved] = index
            for columns in (self._capacity, self._allocated):
                columns[:, index] = columns[:, last]
            for flags in (self._online, self._cordoned, *self._machines.values()):
                flags[index] = flags[last]
        for column in (self.names, self.uids, self.notes):
            column.pop()
        self._rank = None
        self.epoch += 1
        self.improved.discard(uid)

    def put_allocation(self, name: str, node_uid: str, amounts: Amounts) -> None:
        """Count an allocation; counted already is fine."""
        old = self._allocations.get(name)
        if old == (node_uid, amounts):
            return
        if old is not None:
            self.drop_allocation(name)
        self._allocations[name] = (node_uid, amounts)
        self._by_node.setdefault(node_uid, set()).add(name)
        index = self._index.get(node_uid)
        if index is not None:
            self._allocated[:, index] += amounts
            self.log.append(index)

    def drop_allocation(self, name: str) -> None:
        """Count it no longer; not counted is fine."""
        old = self._allocations.pop(name, None)
        if old is None:
            return
        node_uid, amounts = old
        names = self._by_node[node_uid]
        names.discard(name)
        if not names:
            del self._by_node[node_uid]
        index = self._index.get(node_uid)
        if index is not None:
            self._allocated[:, index] -= np.asarray(amounts, dtype=np.int64)
            self.log.append(index)
            self.improved.add(node_uid)

    def rows(self, indexes: Sequence[int]) -> Rows:
        return Rows(self, indexes)

    def trim_log(self, keep: int) -> None:
        """Forget the log when it has grown beyond ``keep``; what was kept by row must be made anew."""
        if len(self.log) > keep:
            self.log.clear()
            self.epoch += 1

    def state(self) -> dict[str, tuple[NodeFacts, Amounts]]:
        """Node uid → its facts and the sum allocated there: what two equal snapshots have in common."""
        return {
            uid: (self._nodes[uid], (int(a[0]), int(a[1]), int(a[2])))
            for uid, index in self._index.items()
            for a in (self._allocated[:, index],)
        }

    def _add_row(self, uid: str) -> int:
        index = len(self)
        if index == self._online.size:
            self._grow()
        self.names.append("")
        self.uids.append(uid)
        self.notes.append("")
        self._index[uid] = index
        self._allocated[:, index] = _sum(self._allocations[name][1] for name in self._by_node.get(uid, ()))
        self._rank = None
        self.epoch += 1
        return index

    def _grow(self) -> None:
        more = self._online.size
        self._capacity = np.pad(self._capacity, ((0, 0), (0, more)))
        self._allocated = np.pad(self._allocated, ((0, 0), (0, more)))
        self._online = np.pad(self._online, (0, more))
        self._cordoned = np.pad(self._cordoned, (0, more))
        self._machines = {name: np.pad(flags, (0, more)) for name, flags in self._machines.items()}


def _sum(amounts: Iterable[Amounts]) -> Amounts:
    cpu = memory = disk = 0
    for a in amounts:
        cpu, memory, disk = cpu + a[0], memory + a[1], disk + a[2]
    return cpu, memory, disk
