"""A process that drives one guest and dies by SIGKILL right before its n-th effect on the world: a crash at every step.

``python crashing_driver.py HOST PLAN VERB STEP [TRACE]`` with HOST and PLAN as JSON. Exit 0: VERB was done before STEP.
VERB may be a step of the move ``crash``: ``take-over``, ``send:SOCKET``, or ``take:FILE``, a snapshot whose plan is in FILE;
or ``hold:FILE``, one whose guest stands still as this dies; or ``template:FOLDER``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.driver.host import Host
from weft.contracts.driver.migration import MigrationSettings, MigrationSockets
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.driver.snapshot import SnapshotPlan
from weft.drivers.runtime.qemu import guest, qmp, saved_memory, start
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.runtime.qemu.migration import steps
from weft.drivers.runtime.qemu.snapshot import saving

HOST, PLAN, VERB, STEP = sys.argv[1:5]
TRACE = sys.argv[5] if len(sys.argv) > 5 else os.devnull
taken = 0
armed = False


def count(what: str) -> None:
    global taken
    if not armed:
        return
    taken += 1
    with open(TRACE, "a") as trace:
        trace.write(f"{taken} {what}\n")
    if taken == int(STEP):
        os.kill(os.getpid(), signal.SIGKILL)


def counted(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
    def call(*args: Any, **more: Any) -> Any:
        count(name(*args))
        return function(*args, **more)

    return call


async def spawn_process(*words: str, **more: Any) -> asyncio.subprocess.Process:
    """QEMU has begun, and is not there yet."""
    process = await real_spawn(*words, **more)
    count("begun")
    return process


real_spawn = asyncio.create_subprocess_exec


async def main() -> None:
    global armed
    asyncio.create_subprocess_exec = spawn_process  # type: ignore[assignment]
    plan = msgspec.json.decode(PLAN, type=GuestPlan)
    qmp.Qmp.execute = counted(qmp.Qmp.execute, lambda _, command: command)  # type: ignore[method-assign]
    guest.write_record = counted(guest.write_record, lambda *_: "record")
    steps.mark_taken = counted(steps.mark_taken, lambda *_: "mark")
    saved_memory.keep_file = counted(saved_memory.keep_file, lambda *_: "keep memory")
    saving.append_machine = counted(saving.append_machine, lambda *_: "append machine")
    saving.keep_file = counted(saving.keep_file, lambda *_: "keep its memory")
    start._spawn = counted(start._spawn, lambda *_: "spawn")
    start.find_guest_process = counted(start.find_guest_process, lambda *_: "look for it")
    Path.unlink = counted(Path.unlink, lambda path: f"remove {path.name}")  # type: ignore[method-assign]
    driver = QemuDriver(msgspec.json.decode(HOST, type=Host))
    await driver.probe()
    await driver.recover()
    armed = True
    verb, _, socket = VERB.partition(":")
    match verb:
        case "suspend":
            await driver.suspend(plan.id)
        case "take-over":
            await driver.migrations.take_over(plan.id, "crash")
        case "send":
            await driver.migrations.send(plan.id, "crash", MigrationSockets(socket), MigrationSettings())
        case "take":
            snapshot = msgspec.json.decode(Path(socket).read_bytes(), type=SnapshotPlan)
            await driver.snapshots.take(plan.id, snapshot)
            while (await driver.snapshots.progress(plan.id, snapshot.key)).phase == "saving":
                await asyncio.sleep(0.05)
        case "template":
            await driver.templates.make(plan, Path(socket))
        case "hold":
            await driver.snapshots.take(plan.id, msgspec.json.decode(Path(socket).read_bytes(), type=SnapshotPlan))
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            await driver.start(plan)
    armed = False
    await driver.close()


asyncio.run(main())
