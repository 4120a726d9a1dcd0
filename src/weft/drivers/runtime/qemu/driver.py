"""The QEMU runtime: starts, watches, suspends and ends guests as daemons of their own, and finds them again.

Reads and writes ``Host.state_dir/guests/ID`` (record, saved memory, logs) and ``Host.run_dir/ID`` (sockets, pidfile).
A guest never depends on this process: it may be killed at any line, and ``recover`` of the next one goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
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
from weft.drivers.linux.processes import cpu_seconds, resident_bytes
from weft.drivers.runtime.qemu.console.log import shorten
from weft.drivers.runtime.qemu.console.output import PrintedHere
from weft.drivers.runtime.qemu.devices.hotplug import adjust_machine, check_adjustment
from weft.drivers.runtime.qemu.devices.vfio import find_kept, take_back_devices
from weft.drivers.runtime.qemu.disk_relocation import QemuRelocations
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.guests import Guests
from weft.drivers.runtime.qemu.machine_shape import Frame
from weft.drivers.runtime.qemu.migration.carrying import QemuCarrying
from weft.drivers.runtime.qemu.migration.commands import check_movable, check_stays
from weft.drivers.runtime.qemu.migration.steps import QemuMigrations
from weft.drivers.runtime.qemu.probe import QemuFinding
from weft.drivers.runtime.qemu.saved_memory import discard_memory, save_memory
from weft.drivers.runtime.qemu.snapshot.driver import QemuSnapshots
from weft.drivers.runtime.qemu.start import GuestStarter, choose_limits
from weft.drivers.runtime.qemu.template.driver import QemuTemplates
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, Unavailable

HELLO_AGAIN_SECONDS = 0.5
CONSOLE_LOG_BYTES = 16 << 20
CONSOLE_LOG_KEPT_BYTES = 1 << 20
CONSOLE_LOG_CHECK_SECONDS = 5.0
QEMU_LOG_BYTES, QEMU_LOG_KEPT_BYTES = 1 << 20, 64 << 10


class QemuDriver:
    """A RuntimeDriver that can also suspend, adjust, migrate, exec, and report console and stats. ``alike``: another one on the
    same machine, whose probe this one shares."""

    name = "qemu"

    def __init__(self, host: Host, clock: Clock | None = None, alike: QemuDriver | None = None) -> None:
        self._clock = clock or SystemClock()
        self.finding: QemuFinding = alike.finding if alike is not None else QemuFinding(Path(host.run_dir), self._clock)
        self._sysfs = Path(host.sysfs)
        self._capacity = host.capacity
        self._cgroups = ControlGroups(host.cgroup)
        self._news = asyncio.Event()
        self._guests = Guests(host, self._cgroups, self._clock, self._notify)
        self._starter = GuestStarter(self._guests, self._cgroups, self._clock, host)
        self.migrations = QemuMigrations(self._guests, self._cgroups, self._clock, self._working)
        self.carrying = QemuCarrying(self._guests, self._clock, self._working)
        self.hold, self.trim, self.open_counters = self._guests.hold, self._guests.trim, self._guests.open_counters
        self.printed = PrintedHere(self._guests.paths)
        self.relocations = QemuRelocations(self._guests, self._clock, self._working)
        self.snapshots = QemuSnapshots(self._guests, self._working)
        self.templates = QemuTemplates(self._guests, self._starter, self._clock, host.capacity, self._working)
        self._probe: RuntimeProbe | None = None
        self._facts: QemuHostFacts | None = None
        self._probing = asyncio.Lock()
        self._tending: asyncio.Task[None] | None = None
        self._closed = False

    async def probe(self) -> RuntimeProbe:
        async with self._probing:
            if self._probe is None:
                probe, self._facts = await self.finding.find()
                self._probe = msgspec.structs.replace(probe, problems=list(probe.problems), kept=find_kept(self._sysfs))
                self._cgroups.check(limit_guest(1.0, 1 << 30))
        if self._cgroups.problem is not None:
            unlimited = f"{self._cgroups.problem}: guests run without these limits"
            if unlimited not in self._probe.problems:
                self._probe.problems.append(unlimited)
        return self._probe

    # The verbs of RuntimeDriver.

    async def start(self, plan: GuestPlan, has_begun: Callable[[], bool] = lambda: False) -> GuestFacts:
        """Start or resume; see contracts.driver.runtime. ``has_begun``: whether the machine itself reports that it ran; it may
        end before its monitor is reached. Raises DriverFailed, InvalidInput."""
        facts = await self._working()
        async with self._guests.lock(plan.id):
            guest = await self._starter.start(plan, facts, has_begun)
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
            guest.record.stopping = False  # also when its caller gives up waiting

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
        """See contracts.driver.runtime. Raises IllegalTransition for a guest that doesn't run, InvalidInput, DriverFailed."""
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
                    f"vm/{plan.name}: this node has lost its record, so it can't grow while it runs",
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

    async def _adjust(self, guest: Guest, frame: Frame, plan: GuestPlan, facts: QemuHostFacts) -> None:
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

    async def _working(self) -> QemuHostFacts:
        """The probe's facts. Raises DriverFailed where no guest can be started."""
        probe = await self.probe()
        if self._facts is None:
            raise DriverFailed("this node can't start guests: " + "; ".join(probe.problems), details={"step": "probe"})
        return self._facts

    def _notify(self) -> None:
        self._news.set()
        self._tend()  # whichever way a guest came to run here

    def _tend(self) -> None:
        if self._closed or (self._tending is not None and not self._tending.done()):
            return
        if any(guest.running for guest in self._guests.known.values()):
            self._tending = asyncio.create_task(self._tend_logs())

    async def _tend_logs(self) -> None:
        """Record when guests printed what they did, and keep only the end of long logs: a guest must not fill the node's disk
        through its console, nor by what its QEMU complains of."""
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
