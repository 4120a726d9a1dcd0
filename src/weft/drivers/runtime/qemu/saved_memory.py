"""A guest's memory on disk: saved while it stands still, loaded into a machine built for it, or dropped.

Reads and writes the guest's memory file and record, and speaks to its monitor. A driver killed at any line leaves a guest that
runs or one that is suspended; ``settle_memory`` of the next one finds out which, and finishes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import msgspec
from msgspec.structs import replace

from weft.contracts.driver.migration import MigratingGuest
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.durable_file import keep_file
from weft.drivers.runtime.qemu.devices.hotplug import inspect_frame, plug_cpus
from weft.drivers.runtime.qemu.devices.ids import nic_id
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.machine_shape import describe_present
from weft.drivers.runtime.qemu.migration.carried_memory import append_machine
from weft.drivers.runtime.qemu.migration.commands import RAM_STAYS, choose_capabilities
from weft.drivers.runtime.qemu.qmp import Qmp, QmpError
from weft.drivers.runtime.qemu.record import GuestEnd, disk_times
from weft.objects.errors import DriverFailed, Unavailable

SAVE_SECONDS = 600.0
NOT_YET_RUN = ("inmigrate", "paused", "prelaunch", "postmigrate", "finish-migrate")
_SAVE_BYTES_PER_SECOND = 1 << 40  # migration to a file is limited to 128 MiB/s otherwise


async def save_memory(guest: Guest) -> None:
    """Memory and devices to the memory file, durably, with the machine standing still. It runs on if that fails."""
    qmp, record, pending = guest.monitor(), guest.record, guest.paths.memory_pending
    await asyncio.to_thread(pending.unlink, missing_ok=True)
    await qmp.execute("stop")
    try:
        if record.frame is not None:
            record.frame = await inspect_frame(qmp, record.frame)
            record.plan, record.next = describe_present(record.plan, record.next, record.frame), None
        await choose_capabilities(qmp, set())
        await qmp.execute("migrate-set-parameters", **{"max-bandwidth": _SAVE_BYTES_PER_SECOND})
        async with qmp.lend(str(pending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as name:
            await qmp.execute("migrate", uri=f"file:{name}")
            await finish_migration(guest, qmp, "save")
        await asyncio.to_thread(append_machine, pending, await describe_machine(guest))
        await asyncio.to_thread(keep_file, pending, guest.paths.memory)
        record.disk_times = disk_times(record.plan)
        record.memory = "saved"
        await guest.save_record()
    except BaseException:
        record.memory = "none"
        with contextlib.suppress(Unavailable):  # if it has gone there is nothing to run on
            await _run_on(guest)
        raise


async def describe_machine(guest: Guest) -> MigratingGuest:
    """The machine as it is now."""
    qmp, record = guest.monitor(), guest.record
    version = (await qmp.execute("query-version"))["qemu"]
    frame, plan = record.frame, record.plan
    if frame is not None:
        frame = replace(await inspect_frame(qmp, frame), uuid=record.uuid)
        plan = describe_present(plan, record.next, frame)
    return MigratingGuest(
        plan=replace(plan, memory="", ram="", setup="", console_note="", identity=None),
        driver="qemu",
        version=f"{version['major']}.{version['minor']}",
        accelerator=record.accelerator,
        boot_id=record.boot_id,
        machine=msgspec.to_builtins(frame) if frame is not None else {},
    )


async def load_memory(guest: Guest) -> None:
    """Memory from disk into a machine started for it, which then runs."""
    qmp, record = guest.monitor(), guest.record
    if record.frame is not None:  # devices count the CPUs they start with, so those that came later come later again
        await plug_cpus(qmp, record.frame.vcpus + record.frame.plugged_vcpus)
    await choose_capabilities(qmp, {RAM_STAYS} if record.plan.ram else set())
    unheard = record.renewal is not None and record.renewal.identity is not None
    if unheard:  # QEMU itself would tell the network of the MACs that it loads
        await qmp.execute("migrate-set-parameters", **{"announce-rounds": 0})
    async with qmp.lend(str(guest.paths.memory), os.O_RDONLY) as name:
        await qmp.execute("migrate-incoming", uri=f"file:{name}")
        await finish_migration(guest, qmp, "load")
    if unheard:
        await set_links(qmp, record.plan, up=False)
    record.memory = "loaded"
    await guest.save_record()
    await qmp.execute("cont")
    await forget_memory(guest)


async def set_links(qmp: Qmp, plan: GuestPlan, *, up: bool) -> None:
    """Give the guest's NICs a carrier, or none: then nothing reaches the network, or comes from it."""
    for nic in plan.nics:
        await qmp.execute("set_link", name=nic_id(nic), up=up)


async def forget_memory(guest: Guest) -> None:
    guest.record.memory, guest.record.plan = "none", replace(guest.record.plan, ram="")
    await guest.save_record()
    await asyncio.to_thread(guest.paths.memory.unlink, missing_ok=True)


async def discard_memory(guest: Guest) -> None:
    """Stop a suspended guest by dropping its memory."""
    if guest.record.memory != "none":
        guest.record.end = GuestEnd("stopped", "stopRequested", "its saved memory was discarded")
        await forget_memory(guest)


async def settle_memory(guest: Guest) -> None:
    """Finish what a driver left that died while it saved or loaded: the guest then runs, or is suspended."""
    if not guest.has_monitor():
        return
    asleep = guest.status in NOT_YET_RUN
    match guest.record.memory:
        case "none" if asleep:
            await _run_on(guest)
        case "saved":  # whole on disk, and this machine has not run since
            await guest.quit()
        case "loaded" if asleep:
            guest.record.memory = "saved"
            await guest.save_record()
            await guest.quit()
        case "loaded":
            await forget_memory(guest)


async def finish_migration(guest: Guest, qmp: Qmp, step: str) -> None:
    name, deadline = guest.record.plan.name, guest.clock.elapsed() + SAVE_SECONDS
    while True:
        answer = await qmp.execute("query-migrate")
        match answer.get("status"):
            case "completed":
                return
            case "failed" | "cancelled":
                why = answer.get("error-desc", "QEMU gave no reason")
                raise DriverFailed(f"vm/{name}: can't {step} its memory: {why}", details={"step": step})
        if guest.clock.elapsed() > deadline:
            raise DriverFailed(f"vm/{name}: can't {step} its memory within {SAVE_SECONDS:g} s")
        await guest.clock.sleep(0.01)


async def _run_on(guest: Guest) -> None:
    """Run on after a save that failed or was cut off: the guest runs, and nothing of the save is left."""
    qmp = guest.monitor()
    with contextlib.suppress(QmpError):
        await qmp.execute("migrate_cancel")
    for _ in range(200):
        status = (await qmp.execute("query-migrate")).get("status", "none")
        if status not in ("setup", "active", "cancelling", "device", "pre-switchover"):
            break
        await guest.clock.sleep(0.01)
    await qmp.execute("cont")
    await asyncio.to_thread(guest.paths.memory_pending.unlink, missing_ok=True)
    await asyncio.to_thread(guest.paths.memory.unlink, missing_ok=True)
