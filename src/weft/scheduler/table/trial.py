"""A trial: allocations count, or don't, while a question is answered; afterwards the snapshot is as it was. It has gained no
capacity either, so nothing that waits is woken.

``with snapshot.trial() as trial`` is the only form. Trials may lie within each other; the inner one ends first.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Protocol

import msgspec

from weft.contracts.policy import Amounts
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.lease.slots import Entry, Slots
from weft.scheduler.table.facts import NO_LOAD, Load


class Standing(msgspec.Struct, frozen=True):
    """How an allocation is counted."""

    node_uid: str
    amounts: Amounts
    load: Load
    lease: CalendarEntry | None
    slots: Entry


class Counting(Protocol):
    """The part of a snapshot that a trial uses."""

    improved: set[str]
    slots: Slots

    def recall(self, name: str) -> Standing | None: ...
    def put_allocation(self, name: str, node_uid: str, amounts: Amounts, load: Load = NO_LOAD) -> None: ...
    def put_leased(self, name: str, lease: CalendarEntry, disk: int, load: Load = NO_LOAD) -> None: ...
    def put_slotted(self, name: str, node_uid: str, slot: str, amounts: Amounts, load: Load) -> None: ...
    def drop_allocation(self, name: str) -> None: ...


class Trial:
    """``put``, ``put_leased`` and ``put_slotted`` are those of the snapshot; ``keep`` makes all of it last."""

    def __init__(self, snapshot: Counting) -> None:
        self._snapshot = snapshot
        self._before: dict[str, Standing | None] = {}
        self._improved = set(snapshot.improved)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.clear()

    def put(self, name: str, node_uid: str, amounts: Amounts, load: Load = NO_LOAD) -> None:
        self._note(name)
        self._snapshot.put_allocation(name, node_uid, amounts, load)

    def put_leased(self, name: str, lease: CalendarEntry, disk: int, load: Load = NO_LOAD) -> None:
        self._note(name)
        self._snapshot.put_leased(name, lease, disk, load)

    def put_slotted(self, name: str, node_uid: str, slot: str, amounts: Amounts, load: Load) -> None:
        self._note(name)
        self._snapshot.put_slotted(name, node_uid, slot, amounts, load)

    def drop(self, *names: str) -> None:
        """These don't count."""
        for name in dict.fromkeys(names):
            if (was := self._snapshot.recall(name)) is not None:
                self._before.setdefault(name, was)
                self._snapshot.drop_allocation(name)

    def keep_capacity(self, names: Iterable[str]) -> None:
        """These take capacity, but are in no group."""
        for name in dict.fromkeys(names):
            if (was := self._snapshot.recall(name)) is not None:
                self._before.setdefault(name, was)
                self._snapshot.drop_allocation(name)
                alone = msgspec.structs.replace(was.load, groups=(), workload="")
                self._put_back(name, msgspec.structs.replace(was, load=alone, slots=(None, None)))

    def rest(self, names: Iterable[str]) -> None:
        """These take their disk and what else is theirs, but neither cores nor memory."""
        for name in sorted(set(names)):
            if (was := self._snapshot.recall(name)) is not None:
                self._before.setdefault(name, was)
                self._snapshot.drop_allocation(name)
                self._snapshot.put_allocation(name, was.node_uid, (0, 0, was.amounts[2]), was.load)

    def revert(self, name: str) -> None:
        """This one counts as it did before the trial."""
        standing = self._before.pop(name)
        if standing is None:
            self._snapshot.drop_allocation(name)
        else:
            self._put_back(name, standing)

    def clear(self) -> None:
        """All count as they did before the trial."""
        if self._before:
            for name in list(self._before):
                self.revert(name)
            improved = self._snapshot.improved
            improved.clear()
            improved.update(self._improved)

    def keep(self) -> None:
        """Keep what was tried."""
        self._before.clear()

    def _put_back(self, name: str, standing: Standing) -> None:
        if standing.lease is None:
            self._snapshot.put_allocation(name, standing.node_uid, standing.amounts, standing.load)
        else:
            self._snapshot.put_leased(name, standing.lease, standing.amounts[2], standing.load)
        self._snapshot.slots.put_back(name, standing.slots)

    def _note(self, name: str) -> None:
        if name not in self._before:
            self._before[name] = self._snapshot.recall(name)
