"""Boots a machine once and saves it as a template: its RAM is a file from the start, and its devices are saved beside it.

Speaks to the machine's monitor and to the agent inside. A template is whole once ``make`` has returned; what is
less is made again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.host import Capacity
from weft.contracts.driver.runtime import BootKernel, ExecRequest, GuestPlan
from weft.contracts.driver.template import CONSOLE, RAM, STATE
from weft.contracts.durable_file import sync_folder
from weft.drivers.linux.processes import cpu_seconds
from weft.drivers.runtime.qemu.function.fingerprint import identify_node
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.guests import Guests
from weft.drivers.runtime.qemu.machine_shape import plan_frame
from weft.drivers.runtime.qemu.migration.carried_memory import append_machine
from weft.drivers.runtime.qemu.migration.commands import RAM_STAYS, choose_capabilities
from weft.drivers.runtime.qemu.process.confinement import choose_user
from weft.drivers.runtime.qemu.saved_memory import describe_machine, finish_migration
from weft.drivers.runtime.qemu.start import GuestStarter
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed

READY_SECONDS = 600.0  # an emulated distribution on a busy machine takes minutes
REST_SECONDS = 1.5  # that a machine must do nothing, to have come up
_LOOK_SECONDS = 0.25
_BUSY_SHARE = 0.08  # of a core: an emulated machine that does nothing takes less
_MOST_REST_SECONDS = 180.0
_MARGIN_BYTES = 64 << 20
_NO_LIMIT = 1 << 40
_CONSOLE_BYTES = 64 << 10
# An image may bring programs into memory that copies will need at once.
WARM_UP = "[ ! -e /usr/local/lib/weft/warm ] || sh /usr/local/lib/weft/warm; sync"


class QemuTemplates:
    """See contracts.driver.template."""

    def __init__(
        self,
        guests: Guests,
        starter: GuestStarter,
        clock: Clock,
        capacity: Capacity,
        working: Callable[[], Awaitable[QemuHostFacts]],
    ) -> None:
        self._guests, self._starter, self._clock = guests, starter, clock
        self._capacity, self._working = capacity, working

    async def identify(self, plan: GuestPlan) -> str:
        facts = await self._working()
        return await asyncio.to_thread(self._identify, plan, facts)

    def _identify(self, plan: GuestPlan, facts: QemuHostFacts) -> str:
        """The disk's image and the boot files are named by their digests in the paths of the cache."""
        frame = plan_frame(plan, self._capacity.cpu, self._capacity.memory_bytes, ".".join(map(str, facts.version[:2])))
        boot = plan.boot
        parts = [
            identify_node(facts),
            repr(msgspec.structs.replace(frame, uuid="", ports={})),
            f"{len(plan.nics)} {plan.screen} {plan.has_agent} {plan.qemu_agent} {facts.tsc_khz}",
            repr([(disk.base, disk.size_bytes) for disk in plan.disks]),
            f"{boot.kernel} {boot.initrd} {boot.cmdline}" if isinstance(boot, BootKernel) else boot.firmware,
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    async def make(self, plan: GuestPlan, folder: Path) -> None:
        facts, ram = await self._working(), folder / RAM
        plan = msgspec.structs.replace(plan, ram=str(ram), memory="", identity=None)
        await asyncio.to_thread(_lay_out, ram, plan.memory_bytes, choose_user(plan.id, facts.users))
        try:
            async with self._guests.lock(plan.id):
                guest = await self._starter.start(plan, facts, lambda: False)
            await self._come_to_rest(guest)
            await self._save(guest, folder)
            await asyncio.to_thread(_keep_console, guest, folder)
        except OSError as problem:
            raise DriverFailed(
                f"{plan.name}: the template can't be written: {problem.strerror or problem}",
                details={"step": "template"},
            ) from problem
        finally:
            await asyncio.shield(self._end(plan.id))
        await asyncio.to_thread(_seal, folder)

    async def clear(self, prefix: str) -> None:
        for guest in await self._guests.find_all():
            if guest.record.plan.name.startswith(prefix):
                await self._end(guest.record.plan.id)

    async def _end(self, guest_id: str) -> None:
        async with self._guests.lock(guest_id):
            guest = await self._guests.settled(guest_id)
            if guest is not None:
                if guest.running:
                    await guest.quit()
                await self._guests.forget(guest_id)

    async def _come_to_rest(self, guest: Guest) -> None:
        name, deadline = guest.record.plan.name, self._clock.elapsed() + READY_SECONDS
        while not guest.facts().ready:
            if guest.ended.is_set():
                raise DriverFailed(f"{name}: the machine ended while it booted", details={"step": "template"})
            if self._clock.elapsed() > deadline:
                raise DriverFailed(
                    f"{name}: the machine booted, but no agent in it answered within {READY_SECONDS:g} s",
                    details={"step": "template"},
                )
            await self._clock.sleep(_LOOK_SECONDS / 5)
        await self._await_rest(guest)
        await self._warm_up(guest, deadline)
        await self._await_rest(guest)

    async def _await_rest(self, guest: Guest) -> None:
        """Wait until the guest does next to nothing; one that never rests is taken as it is."""
        process, quiet = guest.record.process, 0.0
        deadline = self._clock.elapsed() + _MOST_REST_SECONDS
        while process is not None and quiet < REST_SECONDS and self._clock.elapsed() < deadline:
            before, began = cpu_seconds(process.pid), self._clock.elapsed()
            await self._clock.sleep(_LOOK_SECONDS)
            spent = self._clock.elapsed() - began
            quiet = quiet + spent if cpu_seconds(process.pid) - before < _BUSY_SHARE * spent else 0.0

    async def _warm_up(self, guest: Guest, deadline: float) -> None:
        session = await guest.agents.exec(ExecRequest(["sh", "-c", WARM_UP]))
        try:
            async with asyncio.timeout(max(1.0, deadline - self._clock.elapsed())):
                async for _ in session.output():
                    pass
        except TimeoutError:
            raise DriverFailed(
                f"{guest.record.plan.name}: its warm-up doesn't end", details={"step": "template"}
            ) from None
        finally:
            await session.close()

    async def _save(self, guest: Guest, folder: Path) -> None:
        qmp, state = guest.monitor(), folder / STATE
        await qmp.execute("stop")
        machine = await describe_machine(guest)
        await choose_capabilities(qmp, {RAM_STAYS})
        await qmp.execute("migrate-set-parameters", **{"max-bandwidth": _NO_LIMIT})
        async with qmp.lend(str(state), os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as name:
            await qmp.execute("migrate", uri=f"file:{name}")
            await finish_migration(guest, qmp, "save")
        await asyncio.to_thread(append_machine, state, machine)


def _keep_console(guest: Guest, folder: Path) -> None:
    with guest.paths.console_log.open("rb") as log:
        log.seek(-min(_CONSOLE_BYTES, log.seek(0, os.SEEK_END)), os.SEEK_END)
        (folder / CONSOLE).write_bytes(log.read(_CONSOLE_BYTES))


def _lay_out(ram: Path, size: int, user: int) -> None:
    """Raises DriverFailed where it doesn't fit."""
    free = shutil.disk_usage(ram.parent).free
    if free < size + _MARGIN_BYTES:
        raise DriverFailed(
            f"a template of {size >> 20} MiB doesn't fit: {free >> 20} MiB free in {ram.parent}",
            reason="noSpace",
            hint="free some space in the node's state folder",
            details={"step": "template"},
        )
    with open(ram, "wb") as file:
        file.truncate(size)
        os.fchown(file.fileno(), user, -1)
        os.fchmod(file.fileno(), 0o600)


def _seal(folder: Path) -> None:
    """Seal the folder: from now on nobody writes to it."""
    for name in (RAM, STATE):
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchown(descriptor, 0, 0)
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)
