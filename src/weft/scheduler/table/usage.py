"""What nodes really use, beside what is allocated there: a part of the snapshot.

A node's use is what was measured, plus all that was asked for by those of its allocations that the measure doesn't cover
yet: just placed, still booting. So nobody can pile up on a node between two of its heartbeats. What was measured is told
times the node's ratio of overcommitment, so that it compares with what may be given away: six of eight busy cores are as
full with ``cpu=4`` as without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec
import numpy as np

from weft.contracts.policy import RESOURCES, Amounts, Flags, Whole
from weft.scheduler.table.facts import Load
from weft.scheduler.table.nodes import NodeTable


class Measured(msgspec.Struct, frozen=True):
    """What a node says that it uses, in the units of the table; ``covers`` the allocations that are in it."""

    amounts: Amounts
    covers: frozenset[str] = frozenset()


class UsageTable(NodeTable, ABC):
    """The table with what nodes use. Nothing is done for it before somebody asks: then what has changed since is read from
    ``log``."""

    log: list[int]
    epoch: int
    _allocations: dict[str, tuple[str, Amounts, Load]]

    def __init__(self) -> None:
        super().__init__()
        self._measured: dict[str, Measured] = {}
        self._reckoned = (-1, 0)  # at which epoch, and how far in the log
        self._beyond: Whole = np.zeros((len(RESOURCES), 0), dtype=np.int64)  # how much more than allocated is used
        self._known: Flags = np.zeros(0, dtype=np.bool_)

    @property
    def used(self) -> Whole:
        """As ``allocated``, but as measured where it is."""
        if not self._measured:
            return self.allocated
        self._reckon()
        used: Whole = self.allocated + self._beyond
        return used

    @property
    def measured(self) -> Flags:
        """Which nodes say what they use."""
        self._reckon()
        return self._known

    def put_use(self, uid: str, measured: Measured | None) -> None:
        """Node ``uid`` uses this much; None: that isn't known, or not any more."""
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
        """What node ``uid`` said that it uses."""
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
        return cpu, memory, disk

    @abstractmethod
    def _note(self, index: int, gained: bool) -> None: ...
