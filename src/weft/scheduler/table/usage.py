"""The usage of nodes beside their allocations: a part of the snapshot.

A node's usage is what was measured, plus the requests of those allocations that the measurement doesn't cover yet: just placed,
still booting. So workloads can't pile up on a node between two of its heartbeats. The measured amounts are multiplied by the
node's ratio of overcommitment, so that they compare with what may be allocated: six of eight busy cores are as full with
``cpu=4`` as without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec
import numpy as np

from weft.contracts.policy import RESOURCES, Amounts, Flags, Whole
from weft.scheduler.table.facts import Load
from weft.scheduler.table.nodes import NodeTable


class Measured(msgspec.Struct, frozen=True):
    """The usage that a node reports, in the units of the table."""

    amounts: Amounts
    covers: frozenset[str] = frozenset()  # names of the allocations that are in it


class UsageTable(NodeTable, ABC):
    """The table with usage, computed on demand: by what has changed in ``log`` since."""

    log: list[int]
    epoch: int
    _allocations: dict[str, tuple[str, Amounts, Load]]

    def __init__(self) -> None:
        super().__init__()
        self._measured: dict[str, Measured] = {}
        self._reckoned = (-1, 0)  # at which epoch, and how far in the log
        self._beyond: Whole = np.zeros((len(RESOURCES), 0), dtype=np.int64)  # usage less allocated
        self._known: Flags = np.zeros(0, dtype=np.bool_)

    @property
    def used(self) -> Whole:
        """The usage of measured nodes, else ``allocated``."""
        if not self._measured:
            return self.allocated
        self._reckon()
        used: Whole = self.allocated + self._beyond
        return used

    @property
    def measured(self) -> Flags:
        """Flags of the nodes that are measured."""
        self._reckon()
        return self._known

    def put_use(self, uid: str, measured: Measured | None) -> None:
        """Set the usage of node ``uid``; None: it isn't known (any more)."""
        if self._measured.get(uid) == measured:
            return
        if measured is None:
            del self._measured[uid]
        else:
            self._measured[uid] = measured
        index = self._index.get(uid)
        if index is not None:
            self._note(index, False)

    def find_use(self, uid: str) -> Measured | None:
        """The usage that node ``uid`` has reported."""
        return self._measured.get(uid)

    def _reckon(self) -> None:
        epoch, position = self._reckoned
        if epoch != self.epoch:
            self._beyond = np.zeros_like(self.free)
            self._known = np.zeros(len(self), dtype=np.bool_)
            rows = {index for uid in self._measured if (index := self._index.get(uid)) is not None}
        else:
            rows = set(self.log[position:])
        for index in rows:
            measured = self._measured.get(self.uids[index])
            self._known[index] = measured is not None
            self._beyond[:, index] = 0 if measured is None else self._find_beyond(index, measured)
        self._reckoned = (self.epoch, len(self.log))

    def _find_beyond(self, index: int, measured: Measured) -> Amounts:
        uid, ratios = self.uids[index], self.facts[index].overcommit
        cpu, memory, disk = (
            round(amount * ratios.get(name, 1.0)) for name, amount in zip(RESOURCES, measured.amounts, strict=True)
        )
        for name in measured.covers:
            found = self._allocations.get(name)
            if found is not None and found[0] == uid:
                asked = found[1]
                cpu, memory, disk = cpu - asked[0], memory - asked[1], disk - asked[2]
        return cpu, memory, disk - self.pools.given(uid)  # what lies in its own pool is in what was measured

    @abstractmethod
    def _note(self, index: int, gained: bool) -> None: ...
