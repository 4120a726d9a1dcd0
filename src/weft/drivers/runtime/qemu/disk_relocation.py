"""Relocates a running guest's disk to another file of its node: mirrored, written to both, then switched.

Speaks to one guest's monitor; passes QEMU the new file open. The guest stands still from before the command to switch until the
record has the result, so the driver after a crash knows by the record alone which file is whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.disk_relocation import RelocationFacts
from weft.contracts.driver.runtime import GuestDisk, GuestPlan
from weft.drivers.runtime.qemu.devices.block_nodes import drop_nodes, find_node, list_nodes
from weft.drivers.runtime.qemu.devices.ids import describe_disk, free_node, given_name
from weft.drivers.runtime.qemu.devices.inherited_fds import open_inherited_fds, plan_disk
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.guests import Guests
from weft.drivers.runtime.qemu.migration.commands import check_alone, check_stays, run_on
from weft.drivers.runtime.qemu.qmp import Qmp, QmpError
from weft.drivers.runtime.qemu.record import RelocationRecord
from weft.objects.errors import DriverFailed, IllegalTransition, NotFound, Unavailable

PIVOT_SECONDS = 20.0
CANCEL_SECONDS = 30.0
_LOOK_SECONDS = 0.002


class QemuRelocations:
    """See contracts.driver.disk_relocation."""

    def __init__(self, guests: Guests, clock: Clock, working: Callable[[], Awaitable[object]]) -> None:
        self._guests, self._clock, self._working = guests, clock, working

    async def begin(self, guest_id: str, key: str, disk: GuestDisk, bytes_per_second: int = 0) -> None:
        await self._working()
        async with self._guests.lock(guest_id):
            guest = await self._guests.get(guest_id)
            await guest.settle()
            record, name = guest.record, guest.record.plan.name
            if not guest.running or record.stopping:
                raise IllegalTransition(f"vm/{name} is not running, so its disk can't be relocated live")
            check_stays(guest)
            check_alone(guest, "they can't be relocated")
            former = record.relocation
            qmp = guest.monitor()
            if former is not None and former.key == key and await _find_job(qmp, former) is not None:
                return
            there = await find_node(qmp, disk.serial)
            record.relocation = RelocationRecord(key, disk, node=free_node(disk.serial, await list_nodes(qmp)))
            await guest.save_record()
            try:
                await _drop(guest, record.relocation, self._clock)
                await _begin_copy(qmp, there, record.relocation, bytes_per_second, _choose_extent(record.plan, disk))
            except (QmpError, DriverFailed) as problem:
                record.relocation = None
                await guest.save_record()
                raise DriverFailed(
                    f"vm/{name}: its disk {disk.serial} can't be copied: {problem}", details={"step": "copy"}
                ) from problem

    async def progress(self, guest_id: str, key: str) -> RelocationFacts:
        try:
            guest = await self._guests.get(guest_id)
        except NotFound:
            return RelocationFacts("none")
        await guest.settle()
        wanted = guest.record.relocation
        if wanted is None or wanted.key != key:
            return RelocationFacts("none")
        if wanted.stage == "there":
            return RelocationFacts("there")
        if not guest.running:
            return RelocationFacts("failed", "the guest ended in the meantime")
        job = await _find_job(guest.monitor(), wanted)
        if wanted.stage == "pivoting":
            return RelocationFacts("pivoting")
        if job is None:
            return RelocationFacts("none")  # it was cut off before it had begun
        if "error" in job:
            return RelocationFacts("failed", str(job["error"]))
        phase = "ready" if job["status"] == "ready" else "copying"
        done, total = int(job["current-progress"]), int(job["total-progress"])
        return RelocationFacts(phase, "", done, total)  # type: ignore[arg-type]

    async def pivot(self, guest_id: str, key: str) -> None:
        async with self._guests.lock(guest_id):
            guest = await self._guests.get(guest_id)
            await guest.settle()
            record, wanted = guest.record, guest.record.relocation
            if wanted is None or wanted.key != key:
                raise IllegalTransition(f"vm/{record.plan.name}: none of its disks is being relocated")
            if wanted.stage == "there":
                return
            if not guest.running:
                raise DriverFailed(f"vm/{record.plan.name} ended in the meantime", details={"step": "copy"})
            record.relocation = wanted = msgspec.structs.replace(wanted, stage="pivoting")
            await guest.save_record()
            qmp = guest.monitor()
            try:
                await self._switch(guest, qmp, wanted)
            except (QmpError, DriverFailed) as problem:
                record.relocation = msgspec.structs.replace(wanted, stage="copying")
                await guest.save_record()
                await run_on(guest)
                message = f"vm/{record.plan.name}: its disk {wanted.disk.serial} can't be switched: {problem}"
                raise DriverFailed(message, details={"step": "copy"}) from problem
            disks = [wanted.disk if disk.serial == wanted.disk.serial else disk for disk in record.plan.disks]
            record.plan = msgspec.structs.replace(record.plan, disks=disks)
            record.relocation = msgspec.structs.replace(wanted, stage="there")
            await guest.save_record()
            await run_on(guest)
            await _drop(guest, wanted, self._clock)
        self._guests.notify()

    async def _switch(self, guest: Guest, qmp: Qmp, wanted: RelocationRecord) -> None:
        """Put the new file in the old one's place while the guest stands still. Raises DriverFailed, QmpError."""
        job = await _find_job(qmp, wanted)
        await qmp.execute("stop")
        if job is not None and job["status"] == "ready":
            await qmp.execute("job-complete", id=wanted.job)
        deadline = self._clock.elapsed() + PIVOT_SECONDS
        while (job := await _find_job(qmp, wanted)) is not None and job["status"] != "concluded":
            if self._clock.elapsed() > deadline:
                await _cancel_job(qmp, wanted)
                raise DriverFailed(f"QEMU did not switch to the new disk within {PIVOT_SECONDS:g} s")
            await self._clock.sleep(_LOOK_SECONDS)
        if await find_node(qmp, wanted.disk.serial) != wanted.node:
            raise DriverFailed(str((job or {}).get("error", "the copy has ended")))

    async def cancel(self, guest_id: str, key: str) -> None:
        async with self._guests.lock(guest_id):
            try:
                guest = await self._guests.get(guest_id)
            except NotFound:
                return
            await guest.settle()
            wanted = guest.record.relocation
            if wanted is None or wanted.key != key:
                return
            if wanted.stage == "there":
                raise IllegalTransition(f"vm/{guest.record.plan.name}: its disk is already relocated")
            if guest.running:
                await _drop(guest, wanted, self._clock)
                if wanted.stage == "pivoting":
                    await run_on(guest)
            guest.record.relocation = None
            await guest.save_record()

    async def forget(self, guest_id: str, key: str) -> None:
        async with self._guests.lock(guest_id):
            with contextlib.suppress(NotFound):
                guest = await self._guests.get(guest_id)
                if guest.record.relocation is not None and guest.record.relocation.key == key:
                    guest.record.relocation = None
                    await guest.save_record()


def _choose_extent(plan: GuestPlan, there: GuestDisk) -> str:
    """How much of the disk is copied: its own file where what that stands on is there too, else all of it."""
    stands = any(disk.layers or disk.rbd for disk in plan.disks if disk.serial == there.serial)
    return "top" if there.layers or (there.base and not stands) else "full"


async def _begin_copy(qmp: Qmp, there: str, wanted: RelocationRecord, bytes_per_second: int, extent: str) -> None:
    disk = wanted.disk
    with open_inherited_fds(plan_disk(disk)) as fds:
        sets, files = {}, {}
        for what, descriptor in fds.items():
            given = await qmp.execute("add-fd", descriptor=descriptor)
            sets[what], files[what] = given["fdset-id"], given_name(disk, given["fdset-id"], given["fd"])
    try:
        node = describe_disk(disk, files)
        await qmp.execute("blockdev-add", **{**node, "node-name": wanted.node})
    finally:  # QEMU has its own by now
        for number in sets.values():
            with contextlib.suppress(QmpError, Unavailable):
                await qmp.execute("remove-fd", **{"fdset-id": number})
    how: dict[str, Any] = {"job-id": wanted.job, "copy-mode": "write-blocking", "auto-dismiss": False}
    if bytes_per_second:
        how["speed"] = bytes_per_second
    await qmp.execute("blockdev-mirror", device=there, target=wanted.node, sync=extent, **how)


async def _find_job(qmp: Qmp, wanted: RelocationRecord) -> dict[str, Any] | None:
    jobs: list[dict[str, Any]] = await qmp.execute("query-jobs")
    return next((job for job in jobs if job["id"] == wanted.job), None)


async def _cancel_job(qmp: Qmp, wanted: RelocationRecord) -> None:
    with contextlib.suppress(QmpError):  # it has just ended
        await qmp.execute("block-job-cancel", device=wanted.job, force=True)


async def _drop(guest: Guest, wanted: RelocationRecord, clock: Clock) -> None:
    """End the copy; QEMU keeps only the file that the guest has now. Raises DriverFailed."""
    qmp, deadline = guest.monitor(), clock.elapsed() + CANCEL_SECONDS
    while (job := await _find_job(qmp, wanted)) is not None:
        if job["status"] == "concluded":
            await qmp.execute("job-dismiss", id=wanted.job)
            break
        await _cancel_job(qmp, wanted)
        if clock.elapsed() > deadline:
            raise DriverFailed(f"vm/{guest.record.plan.name}: the copy of a disk doesn't stop")
        await clock.sleep(_LOOK_SECONDS)
    await drop_nodes(qmp, wanted.disk.serial, keep=await find_node(qmp, wanted.disk.serial))
