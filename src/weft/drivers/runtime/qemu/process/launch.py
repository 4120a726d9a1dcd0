"""Starting one guest's QEMU, confined, inside its control group; and undoing a start that failed.

Creates the guest's run folder and control group and starts a process; ``undo_launch`` removes all three again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from weft.contracts.clock import Clock
from weft.contracts.driver.migration import MigrationSettings
from weft.contracts.driver.runtime import BootDisk, GuestPlan
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.cgroup.limits import Limits, limit_guest
from weft.drivers.linux.processes import kill_process, wait_for_end
from weft.drivers.runtime.qemu.devices.inherited_fds import open_handed, plan_handed
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.process.confinement import (
    choose_locked_bytes,
    choose_open_files,
    choose_user,
    plan_confined,
)
from weft.drivers.runtime.qemu.process.lookup import find_guest_process, search_guest_process
from weft.drivers.runtime.qemu.translate import TRANSLATION_CACHE_MIB, Facts, check_plan, translate_guest
from weft.objects.errors import DriverFailed, Unavailable

LAUNCH_SECONDS = 60.0
KILL_SECONDS = 5.0
CPU_HEADROOM = 1.1  # QEMU's own threads (disk, network, monitor) run besides the guest's CPUs
MEMORY_HEADROOM_BYTES = 192 << 20  # QEMU itself, and room for page cache


async def launch_guest(guest: Guest, facts: Facts, cgroups: ControlGroups, *, incoming: bool = False) -> None:
    """Run its QEMU and take hold of it. Raises DriverFailed with QEMU's words, InvalidInput, or Unavailable; what it has
    made by then stays, for ``undo_launch``."""
    paths, plan = guest.paths, guest.record.plan
    check_plan(plan, paths)
    user = choose_user(plan.id, facts.users)
    _make_run_folder(paths.run, user)
    if isinstance(plan.boot, BootDisk) and plan.boot.firmware == "uefi" and not paths.uefi_vars.exists():
        assert facts.uefi_vars is not None
        shutil.copy(facts.uefi_vars, paths.uefi_vars)
    groups = [str(path) for path in cgroups.create_if_possible(plan.id, choose_limits(plan, facts))]
    frame = guest.record.frame
    assert frame is not None
    locked = choose_locked_bytes(plan, frame.memory_bytes + frame.pluggable_bytes)
    with open_handed(plan_handed(plan, paths)) as handed:
        words = translate_guest(plan, frame, paths, facts, handed, incoming=incoming)
        words = plan_confined(
            words,
            user,
            groups=groups,
            kvm_group=facts.kvm_group,
            open_files=choose_open_files(plan),
            locked_bytes=locked,
        )
        said_before = paths.qemu_log.stat().st_size if paths.qemu_log.exists() else 0
        await _spawn(words, handed.values(), paths.qemu_log)
    try:
        await guest.connect(timeout_seconds=LAUNCH_SECONDS)
    except Unavailable as error:
        raise launch_failed(
            plan, f"didn't start: {_last_words(paths.qemu_log, said_before) or error.message}"
        ) from None
    guest.record.process = find_guest_process(paths.pid, guest.record.uuid)
    if guest.record.process is None:
        raise launch_failed(plan, "started and ended at once")
    await guest.save_record(durable=False)
    await guest.watch()
    guest.monitor()


def _make_run_folder(run: Path, user: int) -> None:
    """Where QEMU may put its pidfile, and can neither list nor replace what is ours."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True, mode=0o700)
    os.chown(run, -1, user)
    run.chmod(0o1730)


def choose_limits(plan: GuestPlan, facts: Facts, migration: MigrationSettings | None = None) -> Limits:
    """Pure. What the guest was promised, and room for the process around it; while it migrates by differences, for the pages
    too that they are to."""
    memory = plan.memory_bytes + MEMORY_HEADROOM_BYTES
    if migration is not None and migration.mode == "xbzrle":
        memory += migration.cache_bytes
    if facts.accelerator == "tcg":
        memory += TRANSLATION_CACHE_MIB << 20
    return limit_guest(plan.cpu * CPU_HEADROOM, memory)


def launch_failed(plan: GuestPlan, what: str) -> DriverFailed:
    return DriverFailed(f"vm/{plan.name}: QEMU {what}", details={"step": "launch"})


async def undo_launch(guest: Guest, cgroups: ControlGroups, clock: Clock) -> None:
    """No process, run folder or control group is left of this start."""
    plan, paths = guest.record.plan, guest.paths
    await guest.close()
    deadline = clock.elapsed() + KILL_SECONDS
    while (process := search_guest_process(paths.pid, guest.record.uuid)) and clock.elapsed() < deadline:
        kill_process(process)  # and whatever is about to become it
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_SECONDS):
                await wait_for_end(process)
    await cgroups.remove_when_empty(plan.id, clock)
    shutil.rmtree(paths.run, ignore_errors=True)


async def _spawn(words: list[str], descriptors: Collection[int], log: Path) -> None:
    """Start a process of its own, nobody's child, with these descriptors open; what it says goes to ``log``."""
    nowhere = asyncio.subprocess.DEVNULL
    with open(log, "ab") as said:  # noqa: ASYNC230 (nothing is read or written here)
        process = await asyncio.create_subprocess_exec(
            "setsid", "--fork", *words, stdin=nowhere, stdout=said, stderr=said, pass_fds=tuple(descriptors)
        )  # fmt: skip
        await process.wait()


def _last_words(log: Path, start: int) -> str:
    """What QEMU said from byte ``start`` on, but for warnings and time stamps."""
    try:
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [re.sub(r"^\S+T\S+Z ", "", line) for line in lines if "warning:" not in line]
    return " ".join(said)[-500:]
