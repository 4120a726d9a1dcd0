"""Suspended guests on their way to another node, or from one: see contracts.driver.runtime, Carries. The file is the saved memory
itself, so that nothing is written twice; what it says of the machine is checked against the plan of this node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.migration import MigratingGuest
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.durable_file import keep_file
from weft.drivers.linux.processes import host_boot_id
from weft.drivers.runtime.qemu.guests import Guests
from weft.drivers.runtime.qemu.machine_shape import Frame
from weft.drivers.runtime.qemu.migration.carried_memory import read_machine
from weft.drivers.runtime.qemu.migration.commands import check_same
from weft.drivers.runtime.qemu.migration.steps import check_machine
from weft.drivers.runtime.qemu.record import GuestRecord, disk_times
from weft.drivers.runtime.qemu.translate import Facts
from weft.objects.errors import DriverFailed, IllegalTransition

ARRIVING = "memory.arriving"


class QemuCarrying:
    def __init__(self, guests: Guests, clock: Clock, working: Callable[[], Awaitable[Facts]]) -> None:
        self._guests, self._clock, self._working = guests, clock, working

    async def pack(self, guest_id: str) -> str:
        async with self._guests.lock(guest_id):
            guest = await self._guests.settled(guest_id)
            if guest is None or guest.running or guest.record.memory != "saved":
                raise IllegalTransition(f"vm/{guest.record.plan.name if guest else guest_id} is not suspended")
            if await asyncio.to_thread(read_machine, guest.paths.memory) is None:
                name = guest.record.plan.name
                raise DriverFailed(
                    f"vm/{name}: its saved memory doesn't say which machine it is of",
                    hint=f"weft vm resume {name}, then suspend it again",
                    details={"step": "save"},
                )
        return str(guest.paths.memory)

    async def expect(self, guest_id: str) -> str:
        paths = self._guests.paths(guest_id)
        paths.state.mkdir(parents=True, exist_ok=True)
        return str(paths.state / ARRIVING)

    async def unpack(self, guest_id: str, uid: str, incarnation: int, make_plan: Callable[[], GuestPlan]) -> None:
        facts = await self._working()
        async with self._guests.lock(guest_id):
            guest = await self._guests.settled(guest_id)
            if guest is not None and (guest.running or guest.record.plan.uid != uid):
                raise IllegalTransition(f"vm/{guest.record.plan.name} is on this node already")
            paths = self._guests.paths(guest_id)
            come = paths.state / ARRIVING
            record = self._check(make_plan(), await asyncio.to_thread(read_machine, come), facts)
            await asyncio.to_thread(keep_file, come, paths.memory)
            if guest is not None:
                await guest.close()
            await self._guests.add(record).save_record()  # from here on it is here
        self._guests.notify()

    def _check(self, plan: GuestPlan, coming: MigratingGuest | None, facts: Facts) -> GuestRecord:
        """The record of the guest that comes. Raises DriverFailed, InvalidInput if it can't go on here."""
        what, details = f"vm/{plan.name}: its saved memory", {"step": "expect"}
        if coming is None:
            raise DriverFailed(f"{what} hasn't come whole", hint="migrate it again", details=details)
        check_same(plan, coming.plan)
        try:
            frame = msgspec.convert(coming.machine, Frame)
            check_machine(plan, coming, frame, facts)
            older = facts.version[:2] < tuple(map(int, coming.version.split(".")))
        except (ValueError, msgspec.ValidationError) as problem:
            raise DriverFailed(f"{what} is of a machine unknown here: {problem}", details=details) from problem
        if older:
            own = ".".join(map(str, facts.version[:2]))
            hint = "migrate it to a node with that version or a newer one"
            raise DriverFailed(
                f"{what} is of QEMU {coming.version}, and this node has {own}", hint=hint, details=details
            )
        its = coming.plan  # the sizes that the machine had: what is wanted otherwise by now is for ``adjust``
        sizes = [disk.size_bytes for disk in its.disks]
        record = GuestRecord(
            plan=msgspec.structs.replace(
                plan,
                cpu=its.cpu,
                vcpus=its.vcpus,
                memory_bytes=its.memory_bytes,
                disks=[msgspec.structs.replace(d, size_bytes=n) for d, n in zip(plan.disks, sizes, strict=True)],
            ),
            accelerator=facts.accelerator,
            host_boot_id=host_boot_id(),
            started_at=self._clock.now(),
            frame=frame,
            boot_id=coming.boot_id,
            memory="saved",
        )
        record.disk_times = disk_times(record.plan)
        return record
