"""The QEMU runtime: starts, watches, suspends and ends guests as daemons of their own, and finds them again.

Reads and writes ``Host.state_dir/guests/ID`` (record, saved memory, logs) and ``Host.run_dir/ID`` (sockets, pidfile).
A guest never depends on this process: it may be killed at any line, and ``recover`` of the next one goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import (
    ExecRequest,
    ExecSession,
    GuestFacts,
    GuestPlan,
    GuestStats,
    RuntimeProbe,
    SessionMark,
)
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.cgroup.limits import limit_guest
from weft.drivers.linux.log_files import keep_end
from weft.drivers.linux.processes import cpu_seconds, host_boot_id, resident_bytes
from weft.drivers.runtime.qemu.console.log import shorten
from weft.drivers.runtime.qemu.console.output import PrintedHere
from weft.drivers.runtime.qemu.devices.hotplug import adjust_machine, check_adjustment
from weft.drivers.runtime.qemu.devices.vfio import find_kept, give_devices, take_back_devices
from weft.drivers.runtime.qemu.disk_relocation import QemuRelocations
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.guests import Guests
from weft.drivers.runtime.qemu.machine_shape import Frame, plan_frame
from weft.drivers.runtime.qemu.migration.commands import check_movable, check_start, check_stays
from weft.drivers.runtime.qemu.migration.steps import QemuMigrations
from weft.drivers.runtime.qemu.probe import probe_qemu
from weft.drivers.runtime.qemu.process.confinement import choose_user
from weft.drivers.runtime.qemu.process.launch import choose_limits, launch_failed, launch_guest, undo_launch
from weft.drivers.runtime.qemu.process.lookup import search_guest_process
from weft.drivers.runtime.qemu.record import GuestRecord, disk_times
from weft.drivers.runtime.qemu.saved_memory import discard_memory, load_memory, save_memory
from weft.drivers.runtime.qemu.translate import Facts
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, Unavailable

HELLO_AGAIN_SECONDS = 0.5
CONSOLE_LOG_BYTES = 16 << 20
CONSOLE_LOG_KEPT_BYTES = 1 << 20
CONSOLE_LOG_CHECK_SECONDS = 5.0
QEMU_LOG_BYTES, QEMU_LOG_KEPT_BYTES = 1 << 20, 64 << 10


class QemuDriver:
    """A RuntimeDriver that can also suspend, adjust, migrate, exec, and tell console and stats. ``alike``: another one on the same
    machine; what that has found out of it isn't found out again."""

    name = "qemu"

    def __init__(self, host: Host, clock: Clock | None = None, alike: QemuDriver | None = None) -> None:
        self._clock, self._alike = clock or SystemClock(), alike
        self._run_dir = Path(host.run_dir)
        self._sysfs = Path(host.sysfs)
        self._capacity = host.capacity
        self._cgroups = ControlGroups(host.cgroup)
        self._news = asyncio.Event()
        self._guests = Guests(host, self._cgroups, self._clock, self._notify)
        self.moves = QemuMigrations(self._guests, self._cgroups, self._clock, self._working)
        self.printed = PrintedHere(self._guests.paths)
        self.relocations = QemuRelocations(self._guests, self._clock, self._working)
        self._probe: RuntimeProbe | None = None
        self._facts: Facts | None = None
        self._probing = asyncio.Lock()
        self._tending: asyncio.Task[None] | None = None
        self._closed = False

    async def probe(self) -> RuntimeProbe:
        async with self._probing:
            if self._probe is None:
                probe, self._facts = await self._find_out()
                self._probe = msgspec.structs.replace(probe, kept=find_kept(self._sysfs))
                self._cgroups.check(limit_guest(1.0, 1 << 30))
        problem = self._cgroups.problem
        if (
            problem is not None
            and (unlimited := f"{problem}: guests run without these limits") not in self._probe.problems
        ):
            self._probe.problems.append(unlimited)
        return self._probe

    async def _find_out(self) -> tuple[RuntimeProbe, Facts | None]:
        if self._alike is None:
            return await probe_qemu(self._run_dir, self._clock)
        probe = await self._alike.probe()
        return msgspec.structs.replace(probe, problems=list(probe.problems)), self._alike._facts

    # The verbs of RuntimeDriver.

    async def start(self, plan: GuestPlan) -> GuestFacts:
        """Start or resume; see contracts.runtime. Raises DriverFailed, InvalidInput."""
        facts = await self._working()
        async with self._guests.lock(plan.id):
            guest = await self._guests.settled(plan.id)
            if guest is not None and guest.record.plan.uid != plan.uid:
                raise DriverFailed(f"vm/{plan.name}: id {plan.id} belongs to {guest.record.plan.name} on this node")
            if guest is not None:
                check_start(guest, plan)
            if guest is not None and guest.running:
                if not guest.record.stopping:
                    return guest.facts()
                await guest.ended.wait()
            if guest is not None and guest.record.memory != "none" and self._fits_memory(guest, plan):
                await self._resume(guest, plan, facts)
            else:
                guest = await self._adopt_unknown(plan) or await self._boot(plan, facts)
        self._notify()
        return guest.facts()

    async def stop(self, guest_id: str, *, grace_seconds: float) -> None:
        async with self._guests.lock(guest_id):
            guest = await self._guests.settled(guest_id)
            if guest is None:
                return
            if not guest.running:
                await discard_memory(guest)
                self._notify()
                return
            guest.record.stopping = True
            await guest.save_record()
        try:
            if grace_seconds > 0:
                await guest.power_off(grace_seconds)
            await guest.quit()
        finally:
            guest.record.stopping = False  # also when whoever waits for it gives up

    async def inspect(self, guest_id: str) -> GuestFacts:
        guest = await self._guests.find(guest_id)
        return guest.facts() if guest else GuestFacts(guest_id, "", "", 0, "absent")

    async def recover(self) -> list[GuestFacts]:
        guests = await self._guests.find_all()
        answering = [guest.said_hello.wait() for guest in guests if guest.running and guest.record.ready]
        if answering:  # fresh boot ids are worth a moment, silent guests are not worth more
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HELLO_AGAIN_SECONDS):
                    await asyncio.gather(*answering)
        self._tend()
        return [guest.facts() for guest in guests]

    async def remove(self, guest_id: str) -> None:
        async with self._guests.lock(guest_id):
            guest = await self._guests.settled(guest_id)
            if guest is not None and guest.running:
                raise IllegalTransition(f"vm/{guest.record.plan.name} is running", hint="stop it first")
            if guest is not None:
                take_back_devices(guest.record.plan.devices, self._sysfs)
            await self._guests.forget(guest_id)
        self._notify()

    async def changed(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def close(self) -> None:
        self._closed = True
        if self._tending is not None:
            self._tending.cancel()
        await self._guests.close()

    # The optional protocols.

    async def suspend(self, guest_id: str) -> None:
        async with self._guests.lock(guest_id):
            guest = await self._guests.get(guest_id)
            await guest.settle()
            if not guest.running:
                if guest.record.memory != "none":
                    return
                raise IllegalTransition(f"vm/{guest.record.plan.name} is not running, so it can't be suspended")
            check_stays(guest)
            check_movable(guest.record.plan, "suspended")
            try:
                await save_memory(guest)
            except Unavailable as error:
                name = guest.record.plan.name
                raise DriverFailed(f"vm/{name} ended while its memory was saved", details={"step": "save"}) from error
            await guest.quit()
        self._notify()

    async def adjust(self, plan: GuestPlan) -> GuestFacts:
        """See contracts.runtime. Raises IllegalTransition for a guest that doesn't run, InvalidInput, DriverFailed."""
        facts = await self._working()
        async with self._guests.lock(plan.id):
            guest = await self._guests.get(plan.id)
            await guest.settle()
            if not guest.running or guest.record.stopping:
                raise IllegalTransition(f"vm/{plan.name} is not running, so nothing can be changed")
            check_stays(guest)
            frame, record = guest.record.frame, guest.record
            if frame is None:
                raise InvalidInput(
                    f"vm/{plan.name}: it was started by an older weft, so it can't grow while it runs",
                    reason="restartNeeded",
                    hint=f"weft vm restart {plan.name}",
                )
            check_adjustment(frame, plan)
            record.next = plan
            await guest.save_record()
            await self._adjust(guest, frame, plan, facts)
            record.plan, record.next = plan, None
            await guest.save_record()
        self._notify()
        return guest.facts()

    async def _adjust(self, guest: Guest, frame: Frame, plan: GuestPlan, facts: Facts) -> None:
        """Limits give way before the guest gets more, and follow when it has less."""
        before = guest.record.plan
        cpu, memory = max(before.cpu, plan.cpu), max(before.memory_bytes, plan.memory_bytes)
        self._cgroups.change(plan.id, choose_limits(msgspec.structs.replace(plan, cpu=cpu, memory_bytes=memory), facts))
        await adjust_machine(guest.monitor(), frame, plan, self._clock)
        self._cgroups.change(plan.id, choose_limits(plan, facts))

    async def exec(self, guest_id: str, request: ExecRequest, mark: SessionMark | None = None) -> ExecSession:
        return await (await self._guests.get(guest_id)).agents.exec(request, mark)

    def console_log(self, guest_id: str) -> str:
        return str(self._guests.paths(guest_id).console_log)

    def console_socket(self, guest_id: str) -> str:
        return str(self._guests.paths(guest_id).console)

    async def screen_socket(self, guest_id: str) -> str:
        guest = await self._guests.get(guest_id)
        if not guest.record.plan.screen:
            raise Unavailable(
                f"vm/{guest.record.plan.name} has no screen", reason="noScreen",
                hint=f"give it one (spec.screen: yes; weft edit vm/{guest.record.plan.name}) and restart it",
            )  # fmt: skip
        return str(guest.paths.screen)

    async def stats(self, guest_id: str, *, disks: bool = True) -> GuestStats:
        guest = await self._guests.get(guest_id)
        process = guest.record.process
        if process is None:
            raise Unavailable(f"vm/{guest.record.plan.name} is not running")
        blocks = await guest.monitor().execute("query-blockstats") if disks else []
        counted = [block["stats"] for block in blocks if block.get("qdev")]
        return GuestStats(
            cpu_seconds=cpu_seconds(process.pid),
            resident_bytes=resident_bytes(process.pid),
            read_bytes=sum(stats["rd_bytes"] for stats in counted),
            written_bytes=sum(stats["wr_bytes"] for stats in counted),
        )

    # How guests come to run.

    async def _working(self) -> Facts:
        """What was found here. Raises DriverFailed where no guest can be started."""
        probe = await self.probe()
        if self._facts is None:
            raise DriverFailed("this node can't start guests: " + "; ".join(probe.problems), details={"step": "probe"})
        return self._facts

    async def _adopt_unknown(self, plan: GuestPlan) -> Guest | None:
        """A QEMU that runs this very guest though nothing is written down of it: never start a second one."""
        if search_guest_process(self._guests.paths(plan.id).pid) is None:
            return None
        facts = self._facts
        record = GuestRecord(plan, facts.accelerator if facts else "", host_boot_id(), self._clock.now())
        guest = self._guests.add(record)
        await self._guests.adopt(guest)
        return guest if guest.running else None

    async def _boot(self, plan: GuestPlan, facts: Facts) -> Guest:
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
            await undo_launch(guest, self._cgroups, self._clock)
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

    def _notify(self) -> None:
        self._news.set()
        self._tend()  # whichever way a guest came to run here

    def _tend(self) -> None:
        if self._closed or (self._tending is not None and not self._tending.done()):
            return
        if any(guest.running for guest in self._guests.known.values()):
            self._tending = asyncio.create_task(self._tend_logs())

    async def _tend_logs(self) -> None:
        """When guests printed what they did is noted. A guest must not fill the node's disk through its console, nor by what its
        QEMU complains of: of a log that grew too long the end is kept."""
        while True:
            self.printed.forget_all_but(self._guests.known)
            for guest_id, guest in self._guests.known.items():
                with contextlib.suppress(OSError):
                    self.printed.note(guest_id, self._clock.now())
                with contextlib.suppress(OSError):
                    if guest.paths.console_log.stat().st_size > CONSOLE_LOG_BYTES:
                        shorten(guest.paths, CONSOLE_LOG_KEPT_BYTES)
                with contextlib.suppress(OSError):
                    if guest.paths.qemu_log.stat().st_size > QEMU_LOG_BYTES:
                        keep_end(guest.paths.qemu_log, QEMU_LOG_KEPT_BYTES)
            if not any(guest.running for guest in self._guests.known.values()):
                return
            await self._clock.sleep(CONSOLE_LOG_CHECK_SECONDS)
