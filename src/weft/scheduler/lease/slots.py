"""The slots of reservations: capacity of nodes that the calendar counts for a reservation, and what workloads take of it. Each slot
is an allocation of role ``reserved``, and a workload in it has that one's name in its own allocation.

``put`` and ``drop`` slots, ``take`` and ``give_back`` by the key of the workload's allocation; in any order.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from weft.scheduler.lease.calendar import Held

Devices = tuple[tuple[int, int], ...]  # thousandths of GPUs by their index on the node


class SlotFacts(msgspec.Struct, frozen=True):
    """Seconds since 1970; ``ready_at`` is when its capacity begins to be held, before ``start``."""

    reservation: str  # its key
    node_uid: str
    amounts: Held
    gpus: Devices
    ready_at: float
    start: float
    end: float
    grace_seconds: float = 0.0


class Free(msgspec.Struct, frozen=True):
    cpu: int  # thousandths of a core
    memory: int  # bytes
    gpus: Mapping[int, int]  # thousandths by index


Entry = tuple[SlotFacts | None, tuple[str, Held, Devices] | None]


class Slots:
    def __init__(self) -> None:
        self._slots: dict[str, SlotFacts] = {}
        self._of: dict[str, set[str]] = {}  # by reservation
        self._taken: dict[str, tuple[str, Held, Devices]] = {}  # by allocation
        self._users: dict[str, set[str]] = {}  # allocations by slot

    def put(self, key: str, slot: SlotFacts) -> None:
        self.drop(key)
        self._slots[key] = slot
        self._of.setdefault(slot.reservation, set()).add(key)

    def drop(self, key: str) -> None:
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        others = self._of[slot.reservation]
        others.discard(key)
        if not others:
            del self._of[slot.reservation]

    def get(self, key: str) -> SlotFacts | None:
        return self._slots.get(key)

    def of(self, reservation: str) -> list[str]:
        """The keys of a reservation's slots, in order."""
        return sorted(self._of.get(reservation, ()))

    def take(self, name: str, slot: str, amounts: Held, gpus: Devices) -> None:
        """Allocation ``name`` takes this of a slot, and nothing else of any."""
        self.give_back(name)
        if any(amounts) or gpus:
            self._taken[name] = (slot, amounts, gpus)
            self._users.setdefault(slot, set()).add(name)

    def give_back(self, name: str) -> None:
        found = self._taken.pop(name, None)
        if found is None:
            return
        users = self._users[found[0]]
        users.discard(name)
        if not users:
            del self._users[found[0]]

    def recall(self, key: str) -> Entry:
        """All that is counted under a key, for ``put_back``."""
        return self._slots.get(key), self._taken.get(key)

    def put_back(self, key: str, entry: Entry) -> None:
        slot, taken = entry
        if slot is not None:
            self.put(key, slot)
        if taken is not None:
            self.take(key, *taken)

    def is_used(self, key: str) -> bool:
        """Whether a workload has anything of a slot."""
        return bool(self._users.get(key))

    def free(self, key: str) -> Free:
        """The free part of a slot; below 0 where it was given out before its workload grew."""
        slot = self._slots[key]
        cpu, memory = slot.amounts
        gpus = dict(slot.gpus)
        for name in self._users.get(key, ()):
            _, amounts, devices = self._taken[name]
            cpu, memory = cpu - amounts[0], memory - amounts[1]
            for index, share in devices:
                gpus[index] = gpus.get(index, 0) - share
        return Free(cpu, memory, gpus)
