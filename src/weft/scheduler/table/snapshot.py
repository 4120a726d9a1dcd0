"""The nodes as numbers, kept up to date by increments: the input of placement decisions.

Fed with nodes and allocations, in any order and repeatedly; equal to one built anew from the same objects. All amounts are whole
numbers (thousandths of a core or a GPU, bytes), so sums never drift. ``log`` has every row that changed, in order, so that what is
kept by row can be renewed; ``risen`` those that gained capacity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from weft.contracts.policy import Amounts, GpuAsk, Whole
from weft.informer.pool.claims import Claim
from weft.scheduler.lease.calendar import Calendar, CalendarEntry
from weft.scheduler.lease.slots import Slots
from weft.scheduler.table.columns import Columns
from weft.scheduler.table.facts import NO_LOAD, Gpu, Load, NodeFacts, amounts_of
from weft.scheduler.table.pools import Bound
from weft.scheduler.table.project_usage import ProjectUsage
from weft.scheduler.table.trial import Standing, Trial
from weft.scheduler.table.usage import UsageTable

__all__ = ["Amounts", "Gpu", "Load", "NodeFacts", "Snapshot", "amounts_of"]

LOG_KEPT = 100_000


class Snapshot(UsageTable):
    """``improved`` collects the uids of nodes, and the ids of storages, that may now fit workloads that they didn't fit before."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []
        self.risen: list[int] = []
        self.epoch = 0  # changes when rows get other numbers or shapes: what is kept by row is invalid then
        self.improved: set[str] = set()
        self._shape_of: dict[Amounts, int] = {}
        self._ordered = True
        self._allocations: dict[str, tuple[str, Amounts, Load]] = {}
        self._placed: list[list[str]] = []  # by row, the names of its allocations
        self._away: dict[str, list[str]] = {}  # allocations on unknown nodes, by the node's uid
        self.leases = Calendar()
        self.slots = Slots()
        self.projects = ProjectUsage()

    def index_of(self, uid: str) -> int | None:
        """The node's row, valid until nodes come or go."""
        self.settle()
        return self._index.get(uid)

    def put_node(self, facts: NodeFacts) -> None:
        """Add or update a node."""
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
        """Remove a node; its allocations are kept in case it comes back."""
        index = self._index.pop(uid, None)
        if index is None:
            return
        self._put_data(uid, self.facts[index].data, frozenset())
        if self._placed[index]:
            self._away[uid] = self._placed[index]
        last = len(self) - 1
        for texts in (self.names, self.uids, self.notes):
            texts[index] = texts[last]
            texts.pop()
        self.facts[index] = self.facts[last]
        self.facts.pop()
        self._placed[index] = self._placed[last]
        self._placed.pop()
        if index != last:
            self._index[self.uids[index]] = index
            for columns in self._all_columns():
                columns[..., index] = columns[..., last]
            self._devices.relocate(last, index)
            self._columns.put(index, self.facts[index])
            self._ordered = False
        self._slice()
        self._rank = None
        self.epoch += 1
        self.facts_epoch += 1
        self.improved.discard(uid)

    def settle(self) -> None:
        """Sort the rows by name, so that the first of several equally good nodes is the first by name."""
        if self._ordered:
            return
        order = self._by_name()
        self.names, self.uids, self.notes, self.facts, self._placed = (
            [self.names[i] for i in order],
            [self.uids[i] for i in order],
            [self.notes[i] for i in order],
            [self.facts[i] for i in order],
            [self._placed[i] for i in order],
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
        """Count an allocation, which may be counted already."""
        self._drop_lease(name)
        self.slots.give_back(name)
        self._put(name, node_uid, amounts, load)

    def _put(self, name: str, node_uid: str, amounts: Amounts, load: Load = NO_LOAD) -> None:
        old = self._allocations.get(name)
        if old == (node_uid, amounts, load):
            return
        if old is not None:
            self._drop(name)
        index = self._index.get(node_uid)
        if index is not None:
            self.take(name, index, amounts, load)
            return
        self._allocations[name] = (node_uid, amounts, load)
        self._away.setdefault(node_uid, []).append(name)
        self.groups.add(node_uid, load)
        self.hold(_name_claims(load, name))

    def put_leased(self, name: str, lease: CalendarEntry, disk: int, load: Load = NO_LOAD) -> None:
        """Count an allocation whose cores and memory are taken only during its ``lease``. Requests without an end see the most
        that a node's leases ever take; those with one ask ``leases``. Disk and ``load`` are taken all the time."""
        self._put(name, lease.node_uid, (0, 0, disk), load)
        former = self.leases.get(name)
        if former != lease:
            self.leases.put(name, lease)
            self._put_peak(lease.node_uid)
            if former is not None:
                self._put_peak(former.node_uid)
                self.improved.add(former.node_uid)

    def put_slotted(self, name: str, node_uid: str, slot: str, amounts: Amounts, load: Load) -> None:
        """Count an allocation whose cores, memory and GPUs are a slot's; all of it where no such slot is known."""
        if self.slots.get(slot) is None:
            self.put_allocation(name, node_uid, amounts, load)
            return
        own = msgspec.structs.replace(load, gpus=()) if load.gpus else load
        self.put_allocation(name, node_uid, (0, 0, amounts[2]), own)
        self.slots.take(name, slot, amounts[:2], load.gpus)

    def left_for_leases(self) -> Whole:
        """Two rows: the cores and memory that nodes have beside their leases."""
        left: Whole = self.free[:2] + self._peaks[:, : len(self)]
        return left

    def _drop_lease(self, name: str) -> None:
        if (lease := self.leases.drop(name)) is not None:
            self._put_peak(lease.node_uid)
            self.improved.add(lease.node_uid)  # others may begin earlier, or last longer, even if the peak is the same

    def _put_peak(self, node_uid: str) -> None:
        cpu, memory = self.leases.find_peak(node_uid)
        if (index := self._index.get(node_uid)) is not None:
            self._peaks[:, index] = cpu, memory
        former, gains = self._allocations.get(_name_peak(node_uid)), node_uid in self.improved
        if cpu or memory:
            self._put(_name_peak(node_uid), node_uid, (cpu, memory, 0))
        else:
            self._drop(_name_peak(node_uid))
        if former is not None and former[1][0] <= cpu and former[1][1] <= memory and not gains:
            self.improved.discard(node_uid)  # a higher peak leaves less

    def take(self, name: str, index: int, amounts: Amounts, load: Load = NO_LOAD) -> None:
        """Count an allocation that isn't counted yet on the node of row ``index``."""
        node_uid = self.uids[index]
        self._allocations[name] = (node_uid, amounts, load)
        self._placed[index].append(name)
        if load is not NO_LOAD:
            self.groups.add(node_uid, load)
            self._count_load(index, load, 1)
            if load.claims:
                self.hold(_name_claims(load, name))
        cpu, memory, disk = amounts
        free_cpu, free_memory, free_disk = self.cells
        free_cpu[index] -= cpu
        free_memory[index] -= memory
        free_disk[index] -= disk
        self._note(index, False)

    def drop_allocation(self, name: str) -> None:
        """Stop counting an allocation, if it is counted."""
        self._drop_lease(name)
        self.slots.give_back(name)
        self.slots.drop(name)
        self._drop(name)

    def _drop(self, name: str) -> None:
        old = self._allocations.pop(name, None)
        if old is None:
            return
        node_uid, (cpu, memory, disk), load = old
        self.groups.remove(node_uid, load)
        if load.claims:
            self.release(_name_claims(load, name))
        index = self._index.get(node_uid)
        if index is None:
            names = self._away[node_uid]
            names.remove(name)
            if not names:
                del self._away[node_uid]
            return
        self._placed[index].remove(name)
        self._count_load(index, load, -1)
        free_cpu, free_memory, free_disk = self.cells
        free_cpu[index] += cpu
        free_memory[index] += memory
        free_disk[index] += disk
        self._note(index, True)
        self.improved.add(node_uid)

    def trial(self) -> Trial:
        """Begin a trial, ``with snapshot.trial() as trial``: what is changed by ``trial`` is as before at its end."""
        return Trial(self)

    def recall(self, name: str) -> Standing | None:
        """How an allocation is counted; None if it isn't."""
        found = self._allocations.get(name)
        return None if found is None else Standing(*found, self.leases.get(name), self.slots.recall(name))

    def hold(self, claims: Iterable[Claim]) -> None:
        """Count disks in pools: those in a node's own are disk of the node."""
        for key, growth in self.pools.hold(claims).items():
            if growth and (index := self._index.get(key)) is not None:
                self.cells[2][index] -= growth
                self._note(index, False)

    def release(self, claims: Iterable[Claim]) -> None:
        """Stop counting disks that were held."""
        for key, growth in self.pools.release(claims).items():
            if growth:
                self.improved.add(key)
                if (index := self._index.get(key)) is not None:
                    self.cells[2][index] -= growth
                    self._note(index, True)

    def put_bound(self, storage: str, bound: Bound) -> None:
        """Set what a storage may promise."""
        if self.pools.put_bound(storage, bound):
            self.improved.add(storage)

    def _count_load(self, index: int, load: Load, sign: int) -> None:
        for name, amount in load.extras:
            self._extra(name)[1, index] += amount * sign
        for device, share in load.gpus:
            self._devices.take(index, device, share * sign)

    def _note(self, index: int, gained: bool) -> None:
        if len(self.log) >= LOG_KEPT:
            self.log.clear()
            self.risen.clear()
            self.epoch += 1
        self.log.append(index)
        if gained:
            self.risen.append(index)

    def _stands_right(self, index: int) -> bool:
        names = self.names
        return (not index or names[index - 1] < names[index]) and (
            index + 1 == len(names) or names[index] < names[index + 1]
        )

    def _put_capacity(self, index: int, capacity: Amounts) -> None:
        self._free[:, index] += np.subtract(capacity, self._capacity[:, index])
        self._capacity[:, index] = capacity
        shape = self._shape_of.get(capacity)
        if shape is None:
            if len(self._shape_of) >= max(256, 4 * len(self)):  # most of them are no longer in use
                self._shape_of.clear()
                self.shape_capacities.clear()
                self.epoch += 1
                for row in range(len(self)):
                    self._number_shape(row, self.facts[row].given())
            self._number_shape(index, capacity)
            self.epoch += 1
        elif self._shapes[index] != shape:
            self._shapes[index] = shape
            self.epoch += 1

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
        placed = self._away.pop(facts.uid, [])
        self._placed.append(placed)
        self._capacity[:, index] = 0
        self._free[:, index] = np.negative(_sum(self._allocations[name][1] for name in placed))
        self._free[2, index] -= self.pools.given(facts.uid)
        self._peaks[:, index] = self.leases.find_peak(facts.uid)
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
        for name in self._placed[index]:
            self._count_load(index, self._allocations[name][2], 1)
        self._slice()


def _name_claims(load: Load, name: str) -> tuple[Claim, ...]:
    """The claims of allocation ``name``, with a name for its new disk."""
    return tuple([(pool, disk or f"new {name}", size) for pool, disk, size in load.claims])


def _name_peak(node_uid: str) -> str:
    return f"leases {node_uid}"


def _sum(amounts: Iterable[Amounts]) -> Amounts:
    cpu = memory = disk = 0
    for a in amounts:
        cpu, memory, disk = cpu + a[0], memory + a[1], disk + a[2]
    return cpu, memory, disk


def state_of(snapshot: Snapshot) -> dict[str, Any]:
    """Node uid → its facts and all that is counted there: the same for equal snapshots."""
    return {
        uid: (
            snapshot.facts[index],
            snapshot.allocated[:, index].tolist(),
            snapshot.free[:, index].tolist(),
            {name: int(both[1, index]) for name, both in snapshot._extras.items() if both[:, index].any()},
            snapshot.gpu_free[index, : len(snapshot.facts[index].gpus)].tolist(),
            snapshot.groups.on(uid),
            snapshot.used[:, index].tolist(),
        )
        for uid, index in snapshot._index.items()
    }


def asks_of(snapshot: Snapshot) -> Iterator[tuple[Amounts, GpuAsk | None]]:
    """The request of each allocation; models and memory of GPUs aren't known any more."""
    for _, amounts, load in snapshot._allocations.values():
        yield amounts, GpuAsk(len(load.gpus), load.gpus[0][1]) if load.gpus else None
