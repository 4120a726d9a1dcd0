"""How a guest comes to run: the one path of start, by what is known of it.

| what is known of it | what happens |
|---|---|
| it runs | nothing |
| it runs, but is being stopped | its end is awaited, then as below |
| it has saved memory that its disks still fit | it resumes as the machine that it was |
| it has ended, or nothing is known of it, but a QEMU runs it | that QEMU is adopted: there is never a second one |
| nothing is known of it, and its plan names a snapshot's memory | it begins from that, with its links down if it is a copy |
| it has ended, or nothing is known of it | it boots |

Its QEMU is started confined, inside its control group, with a run folder of its own; ``undo_launch`` removes all three again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.migration import MigrationSettings
from weft.contracts.driver.runtime import BootDisk, GuestDisk, GuestPlan
from weft.contracts.driver.template import CONSOLE
from weft.contracts.trace.span import span
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.cgroup.limits import Limits, limit_guest
from weft.drivers.linux.processes import host_boot_id, kill_process, wait_for_end
from weft.drivers.runtime.qemu.command_line import TRANSLATION_CACHE_MIB
from weft.drivers.runtime.qemu.console.log import note_beginning
from weft.drivers.runtime.qemu.devices.inherited_fds import open_inherited_fds, plan_inherited_fds
from weft.drivers.runtime.qemu.devices.vfio import give_devices, take_back_devices
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.guests import Guests
from weft.drivers.runtime.qemu.machine_shape import plan_frame
from weft.drivers.runtime.qemu.migration.commands import check_start
from weft.drivers.runtime.qemu.process.confinement import (
    choose_locked_bytes,
    choose_open_files,
    choose_user,
    plan_confined,
)
from weft.drivers.runtime.qemu.process.lookup import find_guest_process, search_guest_process
from weft.drivers.runtime.qemu.record import GuestRecord, SnapshotRecord, disk_times
from weft.drivers.runtime.qemu.saved_memory import load_memory
from weft.drivers.runtime.qemu.snapshot.beginning import plan_beginning
from weft.drivers.runtime.qemu.snapshot.renewal import renew
from weft.drivers.runtime.qemu.translate import QemuHostFacts, check_plan, translate_guest
from weft.objects.errors import DriverFailed, Unavailable

LAUNCH_SECONDS = 60.0
KILL_SECONDS = 5.0
CPU_HEADROOM = 1.1  # QEMU's own threads (disk, network, monitor) run besides the guest's CPUs
MEMORY_HEADROOM_BYTES = 192 << 20  # QEMU itself, and its page cache
RBD_HEADROOM_BYTES = 96 << 20  # for each image in Ceph: a client of its own with its threads, and 32 MiB of cache


class GuestStarter:
    """Its caller holds the guest's lock."""

    def __init__(self, guests: Guests, cgroups: ControlGroups, clock: Clock, host: Host) -> None:
        self._guests, self._cgroups, self._clock = guests, cgroups, clock
        self._sysfs, self._capacity = Path(host.sysfs), host.capacity

    async def start(self, plan: GuestPlan, facts: QemuHostFacts, has_begun: Callable[[], bool]) -> Guest:
        """Raises DriverFailed, InvalidInput."""
        guest = await self._guests.settled(plan.id)
        if guest is not None:
            if guest.record.plan.uid != plan.uid:
                raise DriverFailed(f"vm/{plan.name}: id {plan.id} belongs to {guest.record.plan.name} on this node")
            check_start(guest, plan)
            if guest.running and not guest.record.stopping:
                return guest
            if guest.running:
                await guest.ended.wait()
            if guest.record.memory != "none" and self._fits_memory(guest, plan):
                await self._resume(guest, plan, facts)
                self._guests.notify()
                return guest
        kept = guest.record.snapshot if guest is not None else None
        adopted = await self._adopt_unknown(plan, facts)
        if adopted is None and guest is None and plan.memory:
            guest = await self._begin(plan, facts)
        else:
            guest = adopted or await self._boot(plan, facts, has_begun, kept)
        self._guests.notify()
        return guest

    async def _adopt_unknown(self, plan: GuestPlan, facts: QemuHostFacts) -> Guest | None:
        """A QEMU that runs this very guest though nothing is written down of it: never start a second one."""
        if search_guest_process(self._guests.paths(plan.id).pid) is None:
            return None
        record = GuestRecord(plan, facts.accelerator, host_boot_id(), self._clock.now())
        guest = self._guests.add(record)
        await self._guests.adopt(guest)
        return guest if guest.running else None

    async def _begin(self, plan: GuestPlan, facts: QemuHostFacts) -> Guest:
        """Begin the guest from the memory that a snapshot kept. What fails leaves nothing behind."""
        record = await asyncio.to_thread(plan_beginning, plan, facts, self._clock.now())
        guest = self._guests.add(record)
        try:
            await asyncio.to_thread(_link_memory, guest.paths.memory, plan.memory)
            if plan.console_note:
                booted = Path(plan.memory).with_name(CONSOLE) if plan.ram else None
                await asyncio.to_thread(note_beginning, guest.paths, plan.console_note, booted)
            await guest.save_record()
            await self._resume(guest, plan, facts)
        except BaseException:
            if not guest.running:
                await self._guests.forget(plan.id)
            raise
        return guest

    async def _boot(
        self, plan: GuestPlan, facts: QemuHostFacts, has_begun: Callable[[], bool], kept: SnapshotRecord | None
    ) -> Guest:
        """``kept``: what its last run's snapshot has come to."""
        if plan.memory:  # it has run before: nothing but its disks counts
            plan = msgspec.structs.replace(plan, memory="", ram="")
        paths = self._guests.paths(plan.id)
        fresh = not paths.record.exists()
        version = ".".join(map(str, facts.version[:2]))
        frame = plan_frame(plan, self._capacity.cpu, self._capacity.memory_bytes, version)
        record = GuestRecord(plan, facts.accelerator, host_boot_id(), self._clock.now(), frame, snapshot=kept)
        guest = self._guests.add(record)
        try:
            await guest.save_record()
            give_devices(plan.name, plan.devices, self._sysfs, choose_user(plan.id, facts.users))
            await launch_guest(guest, facts, self._cgroups)
        except BaseException as error:
            if not has_begun():
                await undo_launch(guest, self._cgroups, self._clock)
            if has_begun():  # also while that was undone: it runs, or has ended, and is not begun again
                await guest.settle()
                await self._guests.adopt(guest)
                if isinstance(error, (DriverFailed, Unavailable)):
                    return guest
                raise
            take_back_devices(plan.devices, self._sysfs)
            if fresh:
                shutil.rmtree(paths.state, ignore_errors=True)
            self._guests.drop(plan.id)
            if isinstance(error, Unavailable):
                raise launch_failed(plan, "started, but doesn't answer") from error
            raise
        return guest

    async def _resume(self, guest: Guest, plan: GuestPlan, facts: QemuHostFacts) -> None:
        """Resume the guest as the machine that it was; what ``plan`` wants otherwise is for ``adjust``."""
        record = guest.record
        before = (record.plan, record.started_at, record.host_boot_id)
        record.plan = msgspec.structs.replace(
            record.plan, incarnation=plan.incarnation, disks=_find_files(record.plan.disks, plan.disks)
        )
        record.started_at, record.host_boot_id = self._clock.now(), host_boot_id()
        if record.memory == "saved":  # it hasn't run since, whatever its disks' files are by now
            record.disk_times = disk_times(record.plan)
        try:
            await launch_guest(guest, facts, self._cgroups, incoming=True)
            with span("load memory"):
                await load_memory(guest)
            if record.renewal is not None:
                guest.keep(renew(guest))
        except BaseException as error:
            if record.memory != "none":  # as far as anyone knows it has not run: it is as suspended as before
                await undo_launch(guest, self._cgroups, self._clock)
                record.plan, record.started_at, record.host_boot_id = before
                record.process = None
                await guest.save_record(durable=False)
            if isinstance(error, Unavailable):
                raise launch_failed(plan, "ended while it loaded its saved memory") from error
            raise

    def _fits_memory(self, guest: Guest, plan: GuestPlan) -> bool:
        """Whether the saved memory may be used. Raises DriverFailed if the machine in the plan is another one."""
        record = guest.record
        if not guest.paths.memory.exists():
            return False
        if record.memory == "loaded" and disk_times(record.plan) != record.disk_times:
            return False
        if record.frame is None or (record.plan.machine, record.plan.boot) != (plan.machine, plan.boot):
            raise DriverFailed(
                f"vm/{plan.name}: its saved memory belongs to a machine of another shape",
                hint="undo the change to resume it, or stop it to discard the saved memory",
            )
        return True


def _find_files(disks: list[GuestDisk], now: list[GuestDisk]) -> list[GuestDisk]:
    """The disks as they were, in the files that have their content by now."""
    files = {disk.serial: disk for disk in now}
    return [
        msgspec.structs.replace(
            disk, path=file.path, format=file.format, layers=file.layers, rbd=file.rbd, key=file.key
        )
        if (file := files.get(disk.serial)) is not None
        else disk
        for disk in disks
    ]


async def launch_guest(guest: Guest, facts: QemuHostFacts, cgroups: ControlGroups, *, incoming: bool = False) -> None:
    """Run its QEMU and take hold of it. Raises DriverFailed with QEMU's error, InvalidInput, or Unavailable; what was made by
    then stays, for ``undo_launch``."""
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
    with open_inherited_fds(plan_inherited_fds(plan, paths)) as fds:
        words = translate_guest(plan, frame, paths, facts, fds, incoming=incoming)
        words = plan_confined(
            words,
            user,
            groups=groups,
            kvm_group=facts.kvm_group,
            open_files=choose_open_files(plan),
            locked_bytes=locked,
        )
        log_bytes = paths.qemu_log.stat().st_size if paths.qemu_log.exists() else 0
        with span("spawn qemu", accelerator=facts.accelerator):
            await _spawn(words, fds.values(), paths.qemu_log)
    try:
        with span("qemu answers"):
            await guest.connect(timeout_seconds=LAUNCH_SECONDS)
    except Unavailable as error:
        raise launch_failed(plan, f"didn't start: {_last_words(paths.qemu_log, log_bytes) or error.message}") from None
    guest.record.process = find_guest_process(paths.pid, guest.record.uuid)
    if guest.record.process is None:
        raise launch_failed(plan, "ended as soon as it started")
    await guest.save_record(durable=False)
    await guest.watch()
    guest.monitor()


def _link_memory(link: Path, memory: str) -> None:
    """The snapshot keeps its memory: what goes when the guest has loaded it is the link."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(memory)


def _make_run_folder(run: Path, user: int) -> None:
    """Make the folder where QEMU may put its pidfile, and can neither list nor replace what is ours."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True, mode=0o700)
    os.chown(run, -1, user)
    run.chmod(0o1730)


def choose_limits(plan: GuestPlan, facts: QemuHostFacts, migration: MigrationSettings | None = None) -> Limits:
    """Pure. What the guest was promised, and headroom for the process around it; while it migrates by differences, also for the
    pages that they are to."""
    images = sum(disk.rbd is not None for disk in plan.disks)
    memory = plan.memory_bytes + MEMORY_HEADROOM_BYTES + images * RBD_HEADROOM_BYTES
    if migration is not None and migration.mode == "xbzrle":
        memory += migration.cache_bytes
    if facts.accelerator == "tcg":
        memory += TRANSLATION_CACHE_MIB << 20
    return limit_guest(plan.cpu * CPU_HEADROOM, memory)


def launch_failed(plan: GuestPlan, what: str) -> DriverFailed:
    return DriverFailed(f"vm/{plan.name}: QEMU {what}", details={"step": "launch"})


async def undo_launch(guest: Guest, cgroups: ControlGroups, clock: Clock) -> None:
    """Remove the process, run folder and control group of this start."""
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
    """Start a detached process with these descriptors open; its output goes to ``log``."""
    nowhere = asyncio.subprocess.DEVNULL
    with open(log, "ab") as output:  # noqa: ASYNC230 (nothing is read or written here)
        process = await asyncio.create_subprocess_exec(
            "setsid", "--fork", *words, stdin=nowhere, stdout=output, stderr=output, pass_fds=tuple(descriptors)
        )  # fmt: skip
        await process.wait()


def _last_words(log: Path, start: int) -> str:
    """QEMU's output from byte ``start`` on, but for warnings and time stamps."""
    try:
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    output = [re.sub(r"^\S+T\S+Z ", "", line) for line in lines if "warning:" not in line]
    return " ".join(output)[-500:]
