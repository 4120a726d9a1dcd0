"""How a guest comes to run: the one path of start, by what is known of it.

| what is known of it | what happens |
|---|---|
| it runs | nothing |
| it runs, but is being stopped | its end is awaited, then as below |
| it has saved memory that its disks still fit | it resumes as the machine that it was |
| it has ended, or nothing is known of it, but a QEMU runs it | that QEMU is adopted: there is never a second one |
| it has ended, or nothing is known of it | it boots |
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import GuestPlan
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.processes import host_boot_id
from weft.drivers.runtime.qemu.devices.vfio import give_devices, take_back_devices
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.guests import Guests
from weft.drivers.runtime.qemu.machine_shape import plan_frame
from weft.drivers.runtime.qemu.migration.commands import check_start
from weft.drivers.runtime.qemu.process.confinement import choose_user
from weft.drivers.runtime.qemu.process.launch import launch_failed, launch_guest, undo_launch
from weft.drivers.runtime.qemu.process.lookup import search_guest_process
from weft.drivers.runtime.qemu.record import GuestRecord, disk_times
from weft.drivers.runtime.qemu.saved_memory import load_memory
from weft.drivers.runtime.qemu.translate import Facts
from weft.objects.errors import DriverFailed, Unavailable


class GuestStarter:
    """Its caller holds the guest's lock."""

    def __init__(self, guests: Guests, cgroups: ControlGroups, clock: Clock, host: Host) -> None:
        self._guests, self._cgroups, self._clock = guests, cgroups, clock
        self._sysfs, self._capacity = Path(host.sysfs), host.capacity

    async def start(self, plan: GuestPlan, facts: Facts, has_begun: Callable[[], bool]) -> Guest:
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
        guest = await self._adopt_unknown(plan, facts) or await self._boot(plan, facts, has_begun)
        self._guests.notify()
        return guest

    async def _adopt_unknown(self, plan: GuestPlan, facts: Facts) -> Guest | None:
        """A QEMU that runs this very guest though nothing is written down of it: never start a second one."""
        if search_guest_process(self._guests.paths(plan.id).pid) is None:
            return None
        record = GuestRecord(plan, facts.accelerator, host_boot_id(), self._clock.now())
        guest = self._guests.add(record)
        await self._guests.adopt(guest)
        return guest if guest.running else None

    async def _boot(self, plan: GuestPlan, facts: Facts, has_begun: Callable[[], bool]) -> Guest:
        paths = self._guests.paths(plan.id)
        fresh = not paths.record.exists()
        version = ".".join(map(str, facts.version[:2]))
        frame = plan_frame(plan, self._capacity.cpu, self._capacity.memory_bytes, version)
        record = GuestRecord(plan, facts.accelerator, host_boot_id(), self._clock.now(), frame)
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

    async def _resume(self, guest: Guest, plan: GuestPlan, facts: Facts) -> None:
        """As the machine that it was; what ``plan`` wants otherwise is for ``adjust``."""
        record = guest.record
        before = (record.plan, record.started_at, record.host_boot_id)
        record.plan = msgspec.structs.replace(record.plan, incarnation=plan.incarnation)
        record.started_at, record.host_boot_id = self._clock.now(), host_boot_id()
        try:
            await launch_guest(guest, facts, self._cgroups, incoming=True)
            await load_memory(guest)
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
