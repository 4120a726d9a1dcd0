"""One snapshot of one running guest: its disks switch, its memory is begun to be saved, and it runs on.

Whatever cuts this off, ``settle_snapshot`` finishes it from what the record and QEMU say: by the same process after a failure,
or by the next one after a kill. The record names the overlays before anything is done, so of a QEMU that can't be asked any more
it is known which files may have been written to.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec

from weft.contracts.driver.snapshot import SnapshotFacts, SnapshotPlan
from weft.drivers.runtime.qemu.devices.block_nodes import find_nodes, list_nodes
from weft.drivers.runtime.qemu.devices.ids import free_node
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.migration.commands import choose_capabilities, run_on
from weft.drivers.runtime.qemu.record import SnapshotRecord, find_own_file, note_switched
from weft.drivers.runtime.qemu.saved_memory import describe_machine
from weft.drivers.runtime.qemu.snapshot.overlays import (
    drop_overlays,
    have_switched,
    let_others_read,
    open_overlays,
    switch,
)
from weft.drivers.runtime.qemu.snapshot.saving import (
    await_flow,
    begin_saving,
    end_saving,
    follow_saving,
    is_saving,
    prepare_saving,
)
from weft.objects.errors import DriverFailed, InvalidInput, Unavailable

HELD_FREEZE_SECONDS = 4.0  # others stand still meanwhile
_CUT_OFF = "its memory was not saved: the node's agent ended in the middle of it"
_HOLD_CUT_OFF = "the node's agent ended while the guest stood still"
_NOT_HELD = "it did not stand still as long as the others of its group"
_STANDS_STILL = "the guest stood still while its memory was saved: this node's kernel doesn't let its QEMU track writes"
_LET_GO_EARLY = "its file systems were let go too early"


async def take_snapshot(guest: Guest, plan: SnapshotPlan, user: int) -> None:
    """Raises DriverFailed, InvalidInput, Unavailable if nothing was switched; what failed later is in the record."""
    qmp, record = guest.monitor(), guest.record
    present = await find_nodes(qmp)
    files = {disk.serial: find_own_file(disk) for disk in record.plan.disks}
    _check_plan(guest, plan, present, files)
    taken = set(await list_nodes(qmp))
    snapshot = SnapshotRecord(
        plan,
        SnapshotFacts(plan.key, "switching", consistency="memory" if plan.memory else "crash"),
        machine=await describe_machine(guest) if plan.memory else None,
        held=guest.status == "paused",
    )
    nodes = {serial: free_node(serial, taken) for serial in snapshot.overlays}
    snapshot = msgspec.structs.replace(snapshot, nodes=nodes)
    if plan.memory:
        await asyncio.to_thread(_clear, snapshot)
    record.snapshot = snapshot
    await guest.save_record()
    take = _switch_and_hold if plan.hold else _switch_with_memory if plan.memory else _switch_disks
    try:
        await open_overlays(qmp, snapshot, files)
        facts = await take(guest, snapshot, present, user)
        await let_others_read(qmp)
    except BaseException as problem:  # also when it is cancelled: the guest must not be left standing still
        why = problem.message if isinstance(problem, (DriverFailed, Unavailable)) else str(problem)
        with contextlib.suppress(DriverFailed, Unavailable):  # QEMU has gone, or is asked again later
            await settle_snapshot(guest, why)
        guest.hold.end()
        await guest.settle()
        if not isinstance(problem, (DriverFailed, Unavailable, OSError)):
            raise
        if record.snapshot is None:
            raise DriverFailed(f"vm/{record.plan.name}: {why}", details={"step": "snapshot"}) from problem
        return
    await _note(guest, snapshot, facts)
    follow(guest)


def _check_plan(guest: Guest, plan: SnapshotPlan, present: dict[str, str], files: dict[str, str]) -> None:
    name = guest.record.plan.name
    if unknown := sorted(set(plan.overlays) - (present.keys() & files.keys())):
        raise InvalidInput(f"vm/{name} has no disk {unknown[0]}", field="overlays")
    writable = {disk.serial for disk in guest.record.plan.disks if not disk.read_only}
    if plan.memory and (missing := sorted(writable - set(plan.overlays))):
        raise InvalidInput(f"vm/{name}: disk {missing[0]} would not fit the memory", field="overlays")


def _clear(snapshot: SnapshotRecord) -> None:
    for path in (snapshot.pending, snapshot.plan.memory):
        Path(path).unlink(missing_ok=True)


async def _switch_disks(guest: Guest, snapshot: SnapshotRecord, present: dict[str, str], user: int) -> SnapshotFacts:
    """Switch the disks between two of the guest's writes; if its agent can, with its file systems standing still."""
    qmp, clock, why, lasted = guest.monitor(), guest.clock, "", None
    freeze = snapshot.freezes
    if freeze:
        why = await guest.agents.freeze()
    began, at = clock.elapsed(), clock.now()
    try:
        await switch(qmp, snapshot, present)
        took = (clock.elapsed() - began) * 1000
    finally:
        if freeze:
            lasted = await guest.agents.thaw()
    if freeze and not why and lasted is None:
        why = _LET_GO_EARLY
    frozen = freeze and not why
    return msgspec.structs.replace(
        snapshot.facts,
        phase="done",
        switched=True,
        consistency="filesystem" if frozen else "crash",
        pause_ms=round(lasted if frozen and lasted is not None else took, 3),
        taken_at=at,
        message=why,
    )


async def _switch_with_memory(
    guest: Guest, snapshot: SnapshotRecord, present: dict[str, str], user: int
) -> SnapshotFacts:
    qmp, clock, why = guest.monitor(), guest.clock, ""
    runs_on = await prepare_saving(guest, user)
    if not runs_on:
        why = _STANDS_STILL
    began, at = clock.elapsed(), clock.now()
    await qmp.execute("stop")
    await switch(qmp, snapshot, present)
    await begin_saving(guest, snapshot)
    if not snapshot.held:
        await run_on(guest)
    took = (clock.elapsed() - began) * 1000
    return msgspec.structs.replace(
        snapshot.facts, phase="saving", switched=True, pause_ms=round(took, 3), taken_at=at, message=why
    )


async def _switch_and_hold(guest: Guest, snapshot: SnapshotRecord, present: dict[str, str], user: int) -> SnapshotFacts:
    """Switch the disks and hold the machine: what doesn't write through a file system stands still, so the machine is as it is at
    any instant of the hold."""
    qmp, why = guest.monitor(), ""
    if not snapshot.held:
        agent = [str(guest.paths.qemu_agent)] if snapshot.freezes and guest.record.plan.qemu_agent else []
        await guest.hold.guard(str(guest.paths.qmp), *agent)
    if snapshot.freezes:
        why = await guest.agents.freeze(within=HELD_FREEZE_SECONDS)
    guest.hold.since, at = guest.clock.elapsed(), guest.clock.now()
    await qmp.execute("stop")
    await switch(qmp, snapshot, present)
    consistency = "filesystem" if snapshot.freezes and not why else snapshot.facts.consistency
    return msgspec.structs.replace(
        snapshot.facts, phase="holding", switched=True, consistency=consistency, taken_at=at, message=why
    )


async def release_held(guest: Guest, user: int) -> None:
    """A guest that still stands still runs on, and its snapshot counts. Raises DriverFailed, Unavailable, OSError: it doesn't."""
    snapshot = guest.record.snapshot
    if snapshot is None or snapshot.facts.phase != "holding":
        return
    if not guest.hold.is_on or (await guest.monitor().execute("query-status"))["status"] != "paused":
        await end_hold(guest, _NOT_HELD)
        return
    try:
        facts = await _go_on(guest, snapshot, user)
    except BaseException as problem:
        with contextlib.suppress(DriverFailed, Unavailable):
            await end_hold(guest, f"its memory can't be saved: {problem}")
        raise
    guest.hold.end()
    guest.record.snapshot = msgspec.structs.replace(snapshot, facts=facts)
    await guest.save_record()
    follow(guest)
    await guest.agents.set_clock()


async def _go_on(guest: Guest, snapshot: SnapshotRecord, user: int) -> SnapshotFacts:
    facts, phase, why = snapshot.facts, "done", snapshot.facts.message
    if snapshot.plan.memory:
        phase, why = "saving", why if await prepare_saving(guest, user) else _STANDS_STILL
        await begin_saving(guest, snapshot)
    if not snapshot.held:
        await run_on(guest)
    took = (guest.clock.elapsed() - guest.hold.since) * 1000
    if snapshot.freezes and await guest.agents.thaw() is None and facts.consistency == "filesystem":
        facts, why = msgspec.structs.replace(facts, consistency="crash"), _LET_GO_EARLY
    return msgspec.structs.replace(facts, phase=phase, pause_ms=round(took, 3), message=why)


async def end_hold(guest: Guest, why: str) -> None:
    """It runs on, and its snapshot has failed."""
    snapshot = guest.record.snapshot
    try:
        if snapshot is not None and snapshot.facts.phase == "holding" and guest.has_monitor():
            await _settle_switch(guest, snapshot, why)
            await guest.agents.set_clock()
    finally:
        guest.hold.end()


async def _note(guest: Guest, snapshot: SnapshotRecord, facts: SnapshotFacts) -> None:
    """Note the facts: from now on a rebuilt driver knows what has happened. By then others can stand on the former files."""
    note_switched(guest.record)
    guest.record.snapshot = msgspec.structs.replace(snapshot, facts=facts)
    await guest.save_record()


def follow(guest: Guest) -> None:
    """See its memory through, beside."""
    snapshot = guest.record.snapshot
    if snapshot is not None and snapshot.facts.phase == "saving" and (guest.saving is None or guest.saving.done()):
        guest.saving = guest.keep(follow_saving(guest))


async def settle_snapshot(guest: Guest, why: str = _CUT_OFF) -> None:
    """Finish what was cut off; the guest runs on. Disks that haven't switched are as before; memory that may be whole is followed.
    ``why`` it may be lost."""
    snapshot = guest.record.snapshot
    if snapshot is None or snapshot.is_over or not guest.has_monitor():
        return
    if snapshot.facts.phase == "switching" or (snapshot.facts.phase == "holding" and not guest.hold.is_on):
        await _settle_switch(guest, snapshot, _HOLD_CUT_OFF if snapshot.plan.hold and why == _CUT_OFF else why)
    follow(guest)


async def _settle_switch(guest: Guest, snapshot: SnapshotRecord, why: str) -> None:
    qmp = guest.monitor()
    guest.agents.thaw_wanted = snapshot.freezes
    if await have_switched(qmp, snapshot):
        await let_others_read(qmp)
        facts = msgspec.structs.replace(
            snapshot.facts, phase="done", switched=True, taken_at=snapshot.facts.taken_at or guest.clock.now()
        )
        if snapshot.plan.hold:
            facts = msgspec.structs.replace(facts, phase="failed", message=why)
        elif snapshot.plan.memory:
            facts = msgspec.structs.replace(facts, phase="failed", message=why)
            with contextlib.suppress(DriverFailed):
                if await is_saving(qmp, snapshot):
                    await await_flow(guest, qmp)
                    facts = msgspec.structs.replace(facts, phase="saving", message="")
        await _note(guest, snapshot, facts)
        if snapshot.plan.memory and facts.phase == "failed":
            await end_saving(guest, snapshot)
    else:
        await end_saving(guest, snapshot)
        await drop_overlays(qmp, guest.record.pid, snapshot)
        guest.record.snapshot = None
        await guest.save_record()
    if not snapshot.held:
        await run_on(guest)
    if snapshot.freezes:
        await guest.agents.thaw()


async def cancel_snapshot(guest: Guest) -> None:
    """Drop memory that isn't whole. Raises DriverFailed where QEMU doesn't stop saving it."""
    if guest.saving is not None:
        guest.saving.cancel()
        await asyncio.gather(guest.saving, return_exceptions=True)
        guest.saving = None
    await end_hold(guest, "it was dropped as asked")
    snapshot = guest.record.snapshot
    if snapshot is None or snapshot.is_over:
        return
    if guest.running:
        await end_saving(guest, snapshot)
        await choose_capabilities(guest.monitor(), set())
    facts = msgspec.structs.replace(snapshot.facts, phase="failed", message="its memory was dropped as asked")
    guest.record.snapshot = msgspec.structs.replace(snapshot, facts=facts)
    await guest.save_record()
