"""Snapshots of the fake runtime: which overlays a guest writes to is in its file, and its memory is a file with the boot that it is
of. Memory is whole ``SAVE_SECONDS`` after the switch, also without a driver. See contracts.driver.snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.driver.snapshot import SnapshotFacts, SnapshotPlan
from weft.drivers.runtime.fake.guest import FakeGuest, FakeMemory, FakeSnapshot
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, NotFound

SAVE_SECONDS, PAUSE_MS = 0.2, 20.0
_HERE = ("running", "starting", "paused")


class FakeSnapshots:
    """One for each guest at a time. ``check_stays`` raises for a guest that migrates; ``absorbed`` has (guest, serial, layer)."""

    def __init__(
        self,
        read: Callable[[str], FakeGuest | None],
        write: Callable[[FakeGuest], None],
        lock: Callable[[str], asyncio.Lock],
        check_stays: Callable[[FakeGuest], None],
        clock: Clock,
    ) -> None:
        self._read, self._write, self._lock, self._check_stays, self._clock = read, write, lock, check_stays, clock
        self.absorbed: list[tuple[str, str, str]] = []
        self._held: dict[str, float] = {}  # key → when it ends (elapsed seconds), of those that this driver holds

    async def take(self, guest_id: str, plan: SnapshotPlan) -> SnapshotFacts:
        async with self._lock(guest_id):
            guest = self._running(guest_id)
            former = self.settle(guest)
            if former is not None and former.plan.key == plan.key:
                return former.facts
            self._check_stays(guest)
            if former is not None and former.facts.phase == "saving":
                raise IllegalTransition(f"guest {guest.plan.name}: another snapshot of it is being taken")
            consistency = "memory" if plan.memory else "filesystem" if plan.freeze and guest.plan.has_agent else "crash"
            facts = SnapshotFacts(
                plan.key,
                "holding" if plan.hold else "saving" if plan.memory else "done",
                switched=True,
                consistency=consistency,  # type: ignore[arg-type]
                pause_ms=PAUSE_MS,
                taken_at=self._clock.now(),
            )
            guest.snapshot = FakeSnapshot(plan, facts, self._clock.elapsed() + SAVE_SECONDS)
            if plan.hold:
                self._held[plan.key] = self._clock.elapsed() + plan.hold
            self._write(guest)
            return facts

    async def release(self, guest_id: str, key: str) -> SnapshotFacts:
        async with self._lock(guest_id):
            guest = self._read(guest_id)
            snapshot = self.settle(guest) if guest is not None else None
            if guest is None or snapshot is None or snapshot.plan.key != key:
                return SnapshotFacts(key, "none")
            if snapshot.facts.phase == "holding":
                self._held.pop(key, None)
                phase = "saving" if snapshot.plan.memory else "done"
                snapshot.facts = msgspec.structs.replace(snapshot.facts, phase=phase)
                snapshot.whole_at = self._clock.elapsed() + SAVE_SECONDS
                self._write(guest)
            return snapshot.facts

    async def progress(self, guest_id: str, key: str) -> SnapshotFacts:
        async with self._lock(guest_id):
            guest = self._read(guest_id)
            snapshot = self.settle(guest) if guest is not None else None
            return snapshot.facts if snapshot is not None and snapshot.plan.key == key else SnapshotFacts(key, "none")

    async def cancel(self, guest_id: str, key: str) -> SnapshotFacts:
        async with self._lock(guest_id):
            guest = self._read(guest_id)
            snapshot = self.settle(guest) if guest is not None else None
            if guest is None or snapshot is None or snapshot.plan.key != key:
                return SnapshotFacts(key, "none")
            if snapshot.facts.phase in ("holding", "saving"):
                self._fail(guest, snapshot, "cancelled")
            return snapshot.facts

    async def forget(self, guest_id: str, key: str) -> None:
        async with self._lock(guest_id):
            guest = self._read(guest_id)
            snapshot = self.settle(guest) if guest is not None else None
            if guest is None or snapshot is None or snapshot.plan.key != key:
                return
            if snapshot.facts.phase in ("holding", "saving"):
                raise IllegalTransition(
                    f"guest {guest.plan.name}: that snapshot is still being taken", hint="cancel it first"
                )
            guest.snapshot = None
            self._write(guest)

    async def find_user(self, guest_id: str) -> int:
        return 0

    async def absorb(self, guest_id: str, serial: str, layer: str) -> None:
        self._running(guest_id)
        self.absorbed.append((guest_id, serial, layer))

    def settle(self, guest: FakeGuest) -> FakeSnapshot | None:
        """The snapshot as it is by now."""
        snapshot = guest.snapshot
        if snapshot is not None and snapshot.facts.phase == "holding":
            if guest.state not in _HERE or self._clock.elapsed() >= self._held.get(snapshot.plan.key, 0.0):
                self._fail(guest, snapshot, "it stood still too long, or its driver ended")
            return snapshot
        if snapshot is None or snapshot.facts.phase != "saving":
            return snapshot
        if guest.state not in _HERE:
            self._fail(guest, snapshot, "the guest ended before its memory was saved")
        elif self._clock.elapsed() >= snapshot.whole_at:
            data = msgspec.json.encode(FakeMemory(guest.boot_id))
            path = Path(snapshot.plan.memory)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            snapshot.facts = msgspec.structs.replace(snapshot.facts, phase="done", memory_bytes=len(data))
            self._write(guest)
        return snapshot

    def _fail(self, guest: FakeGuest, snapshot: FakeSnapshot, why: str) -> None:
        snapshot.facts = msgspec.structs.replace(snapshot.facts, phase="failed", message=why)
        self._write(guest)

    def _running(self, guest_id: str) -> FakeGuest:
        guest = self._read(guest_id)
        if guest is None:
            raise NotFound(f"this node has no guest {guest_id}")
        if guest.state != "running":
            raise IllegalTransition(f"guest {guest.plan.name} doesn't run")
        return guest


def read_memory(plan: GuestPlan) -> FakeMemory:
    """The memory that a guest begins from. Raises DriverFailed, InvalidInput for a copy without an agent."""
    if plan.identity is not None and not plan.has_agent:
        raise InvalidInput(f"guest {plan.name}: a copy without an agent can't become another machine", reason="noAgent")
    try:
        return msgspec.json.decode(Path(plan.memory).read_bytes(), type=FakeMemory)
    except (OSError, msgspec.DecodeError) as problem:
        raise DriverFailed(f"guest {plan.name}: the memory to begin from can't be read: {problem}") from problem
