"""The snapshots of a node's running guests: see contracts.driver.snapshot. The guest's record holds the one that it has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from weft.contracts.driver.snapshot import SnapshotFacts, SnapshotPlan
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.guests import Guests
from weft.drivers.runtime.qemu.migration.commands import check_alone, check_movable, check_stays
from weft.drivers.runtime.qemu.process.confinement import choose_user
from weft.drivers.runtime.qemu.snapshot.absorb import (
    begin_absorbing,
    end_absorbing,
    end_left,
    follow_absorbing,
    note_absorbed,
)
from weft.drivers.runtime.qemu.snapshot.taking import (
    cancel_snapshot,
    end_hold,
    release_held,
    settle_snapshot,
    take_snapshot,
)
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound


class QemuSnapshots:
    def __init__(self, guests: Guests, working: Callable[[], Awaitable[QemuHostFacts]]) -> None:
        self._guests, self._working = guests, working
        self._absorbing: set[str] = set()  # guests with a copy that somebody follows

    async def take(self, guest_id: str, plan: SnapshotPlan) -> SnapshotFacts:
        facts = await self._working()
        async with self._guests.lock(guest_id):
            guest = await self._guests.get(guest_id)
            await guest.settle()
            former = guest.record.snapshot
            if former is not None and former.plan.key == plan.key:
                if guest.running:
                    await settle_snapshot(guest)
                if guest.record.snapshot is not None:
                    return guest.record.snapshot.facts
            if guest.running:
                guest.status = (await guest.monitor().execute("query-status"))["status"]  # one may have come just now
            _check(guest, plan)
            if guest_id not in self._absorbing:
                await end_left(guest)  # by an agent that was killed: QEMU would refuse to switch the disk
            await take_snapshot(guest, plan, choose_user(guest_id, facts.users))
            assert guest.record.snapshot is not None
            if guest.record.snapshot.facts.phase == "holding":
                guest.hold.begin(guest.keep(self._end_hold(guest, plan)))
        self._guests.notify()
        return guest.record.snapshot.facts

    async def _end_hold(self, guest: Guest, plan: SnapshotPlan) -> None:
        await guest.clock.sleep(max(0.0, guest.hold.since + plan.hold - guest.clock.elapsed()))
        async with self._guests.lock(guest.record.plan.id):
            await end_hold(guest, f"it stood still for {plan.hold:g} s, and not all others of its group did")
        self._guests.notify()

    async def release(self, guest_id: str, key: str) -> SnapshotFacts:
        facts = await self._working()
        async with self._guests.lock(guest_id):
            if (await self._inspect(guest_id, key)).phase == "holding":
                await release_held(await self._guests.get(guest_id), choose_user(guest_id, facts.users))
            return await self._inspect(guest_id, key)

    async def progress(self, guest_id: str, key: str) -> SnapshotFacts:
        async with self._guests.lock(guest_id):
            return await self._inspect(guest_id, key)

    async def _inspect(self, guest_id: str, key: str) -> SnapshotFacts:
        try:
            guest = await self._guests.get(guest_id)
        except NotFound:
            return SnapshotFacts(key, "none")
        await guest.settle()
        if guest.running:
            await settle_snapshot(guest)
        snapshot = guest.record.snapshot
        return snapshot.facts if snapshot is not None and snapshot.plan.key == key else SnapshotFacts(key, "none")

    async def cancel(self, guest_id: str, key: str) -> SnapshotFacts:
        async with self._guests.lock(guest_id):
            if (await self._inspect(guest_id, key)).phase != "none":
                await cancel_snapshot(await self._guests.get(guest_id))
            return await self._inspect(guest_id, key)

    async def forget(self, guest_id: str, key: str) -> None:
        async with self._guests.lock(guest_id):
            facts = await self._inspect(guest_id, key)
            if facts.phase in ("done", "failed"):
                guest = await self._guests.get(guest_id)
                guest.record.snapshot = None
                await guest.save_record()
            elif facts.phase != "none":
                raise IllegalTransition(f"guest {guest_id}: that snapshot is still being taken", hint="cancel it first")

    async def find_user(self, guest_id: str) -> int:
        return choose_user(guest_id, (await self._working()).users)

    async def absorb(self, guest_id: str, serial: str, layer: str) -> None:
        await self._working()
        guest = await self._guests.get(guest_id)
        try:
            async with self._guests.lock(guest_id):
                await guest.settle()
                self._absorbing.add(guest_id)
                job = await begin_absorbing(guest, serial, layer)
            if job:
                await follow_absorbing(guest, job, guest.clock)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.ensure_future(end_left(guest)))
            raise
        finally:
            self._absorbing.discard(guest_id)
        async with self._guests.lock(guest_id):
            if job:
                await end_absorbing(guest, job)
            await note_absorbed(guest, serial, layer)


def _check(guest: Guest, plan: SnapshotPlan) -> None:
    """Raises IllegalTransition, InvalidInput for a guest of which no snapshot can be taken now."""
    record, name = guest.record, guest.record.plan.name
    if not guest.running or record.stopping:
        raise IllegalTransition(f"vm/{name} is not running, so no snapshot of it can be taken while it runs")
    check_stays(guest)
    check_alone(guest, "no snapshot of it can be taken")
    if guest.status not in ("running", "paused"):
        raise IllegalTransition(
            f"vm/{name} stands still ({guest.status})", hint="a snapshot is taken once it runs again"
        )
    if record.relocation is not None and record.relocation.stage != "there":
        raise IllegalTransition(f"vm/{name}: one of its disks is being relocated", hint="wait until it is there")
    if plan.memory:
        check_movable(record.plan, "kept with its memory")
        if record.frame is None:
            raise InvalidInput(
                f"vm/{name}: this node has lost its record, so its memory can't be kept before a restart",
                reason="restartNeeded",
                hint=f"weft vm restart {name}",
            )
