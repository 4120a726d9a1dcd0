"""Disks on their way with a guest whose nodes share none: written to both sides from when the copies are whole until the
guest stands still, so that the target's are the source's at the moment of the switch.

Speaks to the monitors of both ends: the target exports its empty disks, the source mirrors to them and holds the migration at
its switchover until every copy is closed. What has come to pass is read from QEMU's jobs, so any driver can go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any

import msgspec

from weft.contracts.driver.migration import MigrationEvent, MigrationSettings
from weft.contracts.driver.runtime import GuestPlan
from weft.drivers.runtime.qemu.devices.block_nodes import find_node
from weft.drivers.runtime.qemu.devices.ids import disk_node
from weft.drivers.runtime.qemu.guest import HANDED_OVER, Guest
from weft.drivers.runtime.qemu.migration.commands import COPY, begin_sending, inspect_copies, run_on
from weft.drivers.runtime.qemu.qmp import Qmp, QmpError
from weft.drivers.runtime.qemu.record import find_own_file
from weft.objects.errors import DriverFailed, InvalidInput, Unavailable

log = logging.getLogger("weft.agent")
CLOSE_SECONDS = 30.0
AGAIN_SECONDS = 0.1  # until a QEMU that didn't answer is asked again
LOOK_SECONDS = 0.1  # besides QEMU's events
SYNC_SECONDS = 0.1


def check_copied(plan: GuestPlan, settings: MigrationSettings) -> None:
    """Pure. Raises InvalidInput for a disk to copy that the guest hasn't, or can't write."""
    able = {disk.serial for disk in plan.disks if not disk.read_only}
    for serial in settings.copied_disks:
        if serial not in able:
            raise InvalidInput(
                f"vm/{plan.name}: it has no disk {serial} to copy",
                field="copied_disks",
                hint=f"it has {sorted(able)}",
            )


async def offer_disks(guest: Guest, settings: MigrationSettings) -> None:
    """The target lets the source write its disks, through a socket in the guest's run folder."""
    if not settings.copied_disks:
        return
    qmp = guest.monitor()
    guest.paths.migration_socket("incoming-disks").unlink(missing_ok=True)
    await qmp.execute(
        "nbd-server-start", addr={"type": "unix", "data": {"path": str(guest.paths.migration_socket("incoming-disks"))}}
    )
    for serial in settings.copied_disks:
        node: dict[str, Any] = {"id": f"{COPY}{serial}", "node-name": disk_node(serial)}
        await qmp.execute("block-export-add", type="nbd", name=serial, writable=True, **node)


async def withdraw_disks(guest: Guest, settings: MigrationSettings) -> None:
    """Withdraw the disks: from now on the target's disks are its own."""
    if settings.copied_disks:
        with contextlib.suppress(QmpError):  # it has been
            await guest.monitor().execute("nbd-server-stop")


async def begin_copies(guest: Guest, settings: MigrationSettings) -> None:
    """The source begins to copy. What a disk stands on, its image and layers, is at the target already; of ``whole`` copies only
    its image."""
    qmp, disks = guest.monitor(), {disk.serial: disk for disk in guest.record.plan.disks}
    await drop_copies(guest)
    guest.copy_errors.clear()
    for serial in settings.copied_disks:
        name = COPY + serial
        server = {"type": "unix", "path": str(guest.paths.migration_socket("outgoing-disks"))}
        node: dict[str, Any] = {"node-name": name, "driver": "nbd", "server": server, "export": serial}
        await qmp.execute("blockdev-add", discard="unmap", **node)
        how: dict[str, Any] = {"job-id": name, "copy-mode": "write-blocking", "auto-dismiss": False}
        disk = disks[serial]
        sync = "full" if settings.whole and disk.layers else "top" if disk.base or disk.layers else "full"
        await qmp.execute("blockdev-mirror", device=await find_node(qmp, serial), target=name, sync=sync, **how)


async def lead_copies(guest: Guest, settings: MigrationSettings) -> None:
    """Memory follows once all copies are whole, and the switch once they are closed. Returns when the migration is through or
    broken; a guest that stood still for it then runs on. A QEMU that doesn't answer for a while is asked again: until then
    the guest may be standing still."""
    if not settings.copied_disks:
        return
    with guest.watched() as events:
        while not guest.ended.is_set():
            try:
                if await _lead(guest, guest.monitor(), settings, events):
                    return
            except (Unavailable, DriverFailed) as problem:
                log.warning(
                    "%s: its migration continues once QEMU answers: %s", guest.record.plan.name, problem.message
                )
                await guest.clock.sleep(AGAIN_SECONDS)


async def _lead(
    guest: Guest, qmp: Qmp, settings: MigrationSettings, events: asyncio.Queue[MigrationEvent | None]
) -> bool:
    """Go on from whatever state it is in: True once it is through or broken. Raises Unavailable, and DriverFailed where QEMU
    refuses a command, or doesn't end the copy."""
    closed = False
    while not guest.ended.is_set():
        while not events.empty():
            events.get_nowait()
        jobs = {} if closed else await inspect_copies(qmp)
        status, migration = "none", guest.record.migration
        if migration is not None and migration.sending:  # before, its answer is of an earlier migration
            status = await _inspect_sending(qmp)
        broken = [str(job["error"]) for job in jobs.values() if "error" in job]
        guest.copy_errors = broken or guest.copy_errors
        if broken and status in ("setup", "active", "pre-switchover"):
            await qmp.execute("migrate_cancel")
        elif status == "pre-switchover" and not closed:
            closed = True
            if await _close_copies(qmp, jobs, events):
                await qmp.execute("migrate-continue", state="pre-switchover")
            else:
                await qmp.execute("migrate_cancel")
        elif status == "none" and broken:
            return True
        elif status == "none" and migration is not None and _are_whole(jobs, settings):
            guest.record.migration = msgspec.structs.replace(migration, sending=True)
            await guest.save_record()
            try:
                await begin_sending(guest, settings)
            except QmpError:
                if await _inspect_sending(qmp) != "none":
                    continue  # an earlier command has begun it, and was not answered
                await drop_copies(guest)
                await run_on(guest)
                return True
        elif status == "completed":
            return True  # what is left of the mirrors ends with the machine, or with ``cancel``
        elif status in ("failed", "cancelled"):
            await drop_copies(guest)
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await events.get()
    return True


async def _inspect_sending(qmp: Qmp) -> str:
    """The state of what QEMU sends, in QEMU's word. A machine that came here by a migration is ``completed`` by that one."""
    status = str((await qmp.execute("query-migrate")).get("status", "none"))
    if status == "completed" and (await qmp.execute("query-status"))["status"] != HANDED_OVER:
        return "none"
    return status


def _are_whole(jobs: dict[str, dict[str, Any]], settings: MigrationSettings) -> bool:
    return len(jobs) == len(settings.copied_disks) and all(job["status"] == "ready" for job in jobs.values())


async def _close_copies(
    qmp: Qmp, jobs: dict[str, dict[str, Any]], events: asyncio.Queue[MigrationEvent | None]
) -> bool:
    """End the mirrors where they stand, with the guest standing still; False if one has failed, or doesn't end. They are
    cleared away later: each word to QEMU would lengthen the pause."""
    still = [name for name, job in jobs.items() if job["status"] != "concluded"]
    for refused in await asyncio.gather(
        *(qmp.execute("block-job-cancel", device=name) for name in still), return_exceptions=True
    ):  # ready: what is there stays
        if isinstance(refused, BaseException) and not isinstance(refused, QmpError):  # QmpError: it ends already
            raise refused
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            while not _are_over(jobs := await inspect_copies(qmp)):
                await events.get()
    return _are_over(jobs) and not any("error" in job for job in jobs.values())


def _are_over(jobs: dict[str, dict[str, Any]]) -> bool:
    return all(job["status"] == "concluded" for job in jobs.values())


async def keep_synced(guest: Guest) -> None:
    """Pass on what is written to a migrating guest's disks to the host's immediately, at both ends: QEMU waits for all of it while
    the guest stands still."""
    while guest.migrating and not guest.ended.is_set():
        for disk in guest.record.plan.disks:
            if not disk.read_only and disk.rbd is None:
                with contextlib.suppress(OSError):  # of no harm: QEMU does it again, and says so
                    await asyncio.to_thread(_sync, find_own_file(disk))
        await guest.clock.sleep(SYNC_SECONDS)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


async def drop_copies(guest: Guest) -> None:
    """Nothing of any copying is left at the source."""
    qmp = guest.monitor()
    for name in await inspect_copies(qmp):
        with contextlib.suppress(QmpError):
            await qmp.execute("block-job-cancel", device=name, force=True)
    await _dismiss(qmp, list(await _await_concluded(guest, qmp)))


async def _await_concluded(guest: Guest, qmp: Qmp) -> dict[str, dict[str, Any]]:
    deadline = guest.clock.elapsed() + CLOSE_SECONDS
    while not _are_over(jobs := await inspect_copies(qmp)):
        if guest.clock.elapsed() > deadline:
            raise DriverFailed(
                f"vm/{guest.record.plan.name}: the copy of a disk doesn't stop", details={"step": "copy"}
            )
        await guest.clock.sleep(0.002)
    return jobs


async def _dismiss(qmp: Qmp, names: list[str]) -> None:
    for name in names:
        await qmp.execute("job-dismiss", id=name)
    nodes = {node["node-name"] for node in await qmp.execute("query-named-block-nodes", flat=True)}
    for name in nodes:
        if name.startswith(COPY):
            await qmp.execute("blockdev-del", **{"node-name": name})
