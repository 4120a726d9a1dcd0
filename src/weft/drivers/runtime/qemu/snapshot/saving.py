"""A guest's memory into a file while the guest runs on, as it was at one instant.

QEMU marks all pages as read-only, and saves one that the guest is about to write first. Where it can't learn what the guest
writes, the guest stands still until all is written. Speaks to one guest's monitor; the file gets the machine that it is of at its
end, and its name once it is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.durable_file import keep_file
from weft.drivers.runtime.qemu.devices.block_nodes import close_unused
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.migration.carried_memory import append_machine, read_machine
from weft.drivers.runtime.qemu.migration.commands import choose_capabilities
from weft.drivers.runtime.qemu.qmp import Qmp, QmpError
from weft.drivers.runtime.qemu.record import SnapshotRecord
from weft.drivers.runtime.qemu.snapshot.write_tracking import tracks_writes
from weft.objects.errors import DriverFailed, Unavailable

WHILE_IT_RUNS = "background-snapshot"
FLOW_SECONDS = 120.0  # until the first pages are written; before that QEMU looks at all of the guest's memory
_NO_LIMIT = 1 << 40
_LOOK_SECONDS, _FOLLOW_SECONDS = 0.001, 0.02
_UNDER_WAY = ("setup", "active", "device", "wait-unplug", "pre-switchover", "cancelling")


async def prepare_saving(guest: Guest, user: int) -> bool:
    """Whether the guest may run on while its memory is saved. Raises QmpError."""
    qmp = guest.monitor()
    await qmp.execute("migrate-set-parameters", **{"max-bandwidth": _NO_LIMIT})
    async with tracks_writes(user, guest.clock):
        try:
            await choose_capabilities(qmp, {WHILE_IT_RUNS})
            return True
        except QmpError:
            await choose_capabilities(qmp, set())
            return False


async def begin_saving(guest: Guest, snapshot: SnapshotRecord) -> None:
    """Begin saving with the machine standing still; returns once it may go on. Raises DriverFailed, OSError."""
    qmp = guest.monitor()
    async with qmp.lend(snapshot.pending, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as name:
        await qmp.execute("migrate", uri=f"file:{name}")
        await await_flow(guest, qmp)


async def await_flow(guest: Guest, qmp: Qmp) -> None:
    """Wait until the machine that is being saved may go on: all that isn't memory is written, and what it writes is noticed from
    now on. Raises DriverFailed."""
    deadline = guest.clock.elapsed() + FLOW_SECONDS
    runs_on = WHILE_IT_RUNS in await _capabilities(qmp)
    while True:
        answer = await qmp.execute("query-migrate")
        status, memory = answer.get("status", "none"), answer.get("ram", {})
        if status == "completed" or (runs_on and memory.get("normal", 0) + memory.get("duplicate", 0) > 0):
            return
        if status not in _UNDER_WAY:
            raise DriverFailed(f"its memory can't be saved: {_explain(answer)}", details={"step": "save"})
        if runs_on and guest.clock.elapsed() > deadline:
            raise DriverFailed(
                f"its memory wasn't begun to be saved within {FLOW_SECONDS:g} s", details={"step": "save"}
            )
        await guest.clock.sleep(_LOOK_SECONDS)


async def _capabilities(qmp: Qmp) -> set[str]:
    return {entry["capability"] for entry in await qmp.execute("query-migrate-capabilities") if entry["state"]}


def _explain(answer: dict[str, Any]) -> str:
    return str(answer.get("error-desc", "QEMU gave no reason"))[:300]


async def is_saving(qmp: Qmp, snapshot: SnapshotRecord) -> bool:
    """Whether this snapshot's memory is on its way, or whole already; what QEMU says may be about an earlier one."""
    try:
        written = os.stat(snapshot.pending).st_size
    except OSError:
        return False
    status = (await qmp.execute("query-migrate")).get("status", "none")
    return status in _UNDER_WAY or (status == "completed" and written > 0)


async def end_saving(guest: Guest, snapshot: SnapshotRecord) -> None:
    """Break it off; nothing of it is left. Raises DriverFailed where QEMU doesn't stop."""
    qmp, deadline = guest.monitor(), guest.clock.elapsed() + FLOW_SECONDS
    while (await qmp.execute("query-migrate")).get("status", "none") in _UNDER_WAY:
        with contextlib.suppress(QmpError):
            await qmp.execute("migrate_cancel")
        if guest.clock.elapsed() > deadline:
            raise DriverFailed(f"vm/{guest.record.plan.name}: QEMU doesn't stop saving its memory")
        await guest.clock.sleep(_FOLLOW_SECONDS)
    await close_unused(qmp, guest.record.pid, snapshot.pending)  # of a driver that died
    await asyncio.to_thread(Path(snapshot.pending).unlink, missing_ok=True)


async def follow_saving(guest: Guest) -> None:
    """Follow the save until the memory is whole or lost, and the record says which."""
    while not guest.ended.is_set():
        snapshot = guest.record.snapshot
        if snapshot is None or snapshot.facts.phase != "saving":
            return
        with contextlib.suppress(Unavailable):  # who asks again gets an answer, or its end
            answer = await guest.monitor().execute("query-migrate")
            if answer.get("status") not in _UNDER_WAY:
                await _finish(guest, snapshot, answer)
                return
        await guest.clock.sleep(_FOLLOW_SECONDS)


async def _finish(guest: Guest, snapshot: SnapshotRecord, answer: dict[str, Any]) -> None:
    why = "" if answer.get("status") == "completed" else f"its memory can't be saved: {_explain(answer)}"
    size = 0
    await close_unused(guest.monitor(), guest.record.pid, snapshot.pending)  # of a driver that died
    if not why:
        try:
            size = await asyncio.to_thread(keep_memory, snapshot)
        except OSError as problem:
            why = f"its memory can't be kept: {problem.strerror or problem}"
    if why:
        await asyncio.to_thread(Path(snapshot.pending).unlink, missing_ok=True)
    facts = msgspec.structs.replace(
        snapshot.facts, phase="failed" if why else "done", message=why or snapshot.facts.message, memory_bytes=size
    )
    guest.record.snapshot = msgspec.structs.replace(snapshot, facts=facts)
    await guest.save_record()
    guest.notify()


def keep_memory(snapshot: SnapshotRecord) -> int:
    """Give whole memory its name, durably: how many bytes it has. Repeated is fine. Raises OSError."""
    pending, path = Path(snapshot.pending), Path(snapshot.plan.memory)
    if pending.exists() or not path.exists():
        if read_machine(pending) is None and snapshot.machine is not None:
            append_machine(pending, snapshot.machine)
        keep_file(pending, path)
    return path.stat().st_size
