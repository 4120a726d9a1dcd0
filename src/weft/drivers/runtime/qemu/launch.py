"""Starting one QEMU daemon inside its control group, and undoing a start that failed.

Creates the guest's run folder and control group and starts a process; ``undo_launch`` removes all three again.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil

from weft.contracts.clock import Clock
from weft.contracts.runtime import BootDisk, GuestPlan
from weft.drivers.cgroup import Cgroups, Limits
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.processes import (
    find_guest_process,
    kill_process,
    search_guest_process,
    wait_for_end,
)
from weft.drivers.runtime.qemu.translate import TRANSLATION_CACHE_MIB, Facts
from weft.objects.errors import DriverFailed

LAUNCH_SECONDS = 60.0
KILL_SECONDS = 5.0
CPU_HEADROOM = 1.1  # QEMU's own threads (disk, network, monitor) run besides the guest's CPUs
MEMORY_HEADROOM_BYTES = 192 << 20  # QEMU itself, and room for page cache

# A shell enters the groups and becomes QEMU, so that every thread and every page counts from the first one on.
_ENTER_GROUPS = 'for group in $1; do echo 0 >"$group"; done; shift; exec "$@"'


async def launch_guest(guest: Guest, words: list[str], facts: Facts, cgroups: Cgroups) -> None:
    """Run the command and take hold of the daemon it leaves. Raises DriverFailed with QEMU's words, or Unavailable;
    what it has made by then stays, for ``undo_launch``."""
    paths, plan = guest.paths, guest.record.plan
    shutil.rmtree(paths.run, ignore_errors=True)
    paths.run.mkdir(parents=True, mode=0o700)
    if isinstance(plan.boot, BootDisk) and plan.boot.firmware == "uefi" and not paths.uefi_vars.exists():
        assert facts.uefi_vars is not None
        shutil.copy(facts.uefi_vars, paths.uefi_vars)
    groups = cgroups.create(plan.id, choose_limits(plan, facts))
    if groups:
        words = ["/bin/sh", "-c", _ENTER_GROUPS, "sh", " ".join(map(str, groups)), *words]
    await _spawn(plan, words)
    guest.record.process = find_guest_process(paths.pid, plan.uid)
    if guest.record.process is None:
        raise launch_failed(plan, "started and ended at once")
    await guest.save_record(durable=False)
    await guest.watch()
    guest.monitor()


def choose_limits(plan: GuestPlan, facts: Facts) -> Limits:
    """Pure. What the guest was promised, and room for the process around it."""
    memory = plan.memory_bytes + MEMORY_HEADROOM_BYTES
    if facts.accelerator == "tcg":
        memory += TRANSLATION_CACHE_MIB << 20
    return Limits(plan.cpu * CPU_HEADROOM, memory)


def launch_failed(plan: GuestPlan, what: str) -> DriverFailed:
    return DriverFailed(f"guest {plan.name}: QEMU {what}", details={"step": "launch"})


async def undo_launch(guest: Guest, cgroups: Cgroups, clock: Clock) -> None:
    """No process, run folder or control group is left of this start."""
    plan, paths = guest.record.plan, guest.paths
    await guest.close()
    deadline = clock.elapsed() + KILL_SECONDS
    while (process := search_guest_process(paths.pid, plan.uid)) and clock.elapsed() < deadline:
        kill_process(process)  # and whatever it had forked to become a daemon
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wait_for_end(process), KILL_SECONDS)
    await cgroups.remove_when_empty(plan.id, clock)
    shutil.rmtree(paths.run, ignore_errors=True)


async def _spawn(plan: GuestPlan, words: list[str]) -> None:
    """Run a command that turns itself into a daemon: when it returns 0, machine and sockets are there."""
    pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *words, stdin=nowhere, stdout=nowhere, stderr=pipe, start_new_session=True
    )
    try:
        _, errors = await asyncio.wait_for(process.communicate(), LAUNCH_SECONDS)
    except TimeoutError:
        raise launch_failed(plan, f"isn't up after {LAUNCH_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        said = [line for line in errors.decode(errors="replace").splitlines() if "warning:" not in line]
        raise launch_failed(plan, f"refuses to start: {' '.join(said)[-500:]}")
