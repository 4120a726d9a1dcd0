"""Suspended guests on their way to another node, or from one: see contracts.driver.runtime, Carries. The file is the saved memory
itself, so that nothing is written twice; what it says of the machine is checked against the plan of this node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.durable_file import keep_file
from weft.drivers.runtime.qemu.guests import Guests
from weft.drivers.runtime.qemu.migration.arrival import make_record
from weft.drivers.runtime.qemu.migration.carried_memory import read_machine
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed, IllegalTransition

ARRIVING = "memory.arriving"


class QemuCarrying:
    def __init__(self, guests: Guests, clock: Clock, working: Callable[[], Awaitable[QemuHostFacts]]) -> None:
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
            plan, coming = make_plan(), await asyncio.to_thread(read_machine, come)
            if coming is None:
                message = f"vm/{plan.name}: its saved memory hasn't come whole"
                raise DriverFailed(message, hint="migrate it again", details={"step": "expect"})
            hint = "migrate it to a node with that version or a newer one"
            record = make_record(plan, coming, facts, self._clock.now(), hint)
            await asyncio.to_thread(keep_file, come, paths.memory)
            if guest is not None:
                await guest.close()
            await self._guests.add(record).save_record()  # from here on it is here
        self._guests.notify()
