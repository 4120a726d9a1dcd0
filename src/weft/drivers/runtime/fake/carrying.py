"""Suspended guests of the fake runtime on their way: what goes is the guest's own file. See contracts.driver.runtime, Carries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from weft.contracts.driver.runtime import GuestPlan
from weft.drivers.runtime.fake.guest import FakeGuest
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput


class FakeCarrying:
    def __init__(
        self,
        read: Callable[[str], FakeGuest | None],
        write: Callable[[FakeGuest], None],
        path: Callable[[str], Path],
        lock: Callable[[str], asyncio.Lock],
    ) -> None:
        self._read, self._write, self._path, self._lock = read, write, path, lock

    async def pack(self, guest_id: str) -> str:
        guest = self._read(guest_id)
        if guest is None or guest.state != "suspended":
            raise IllegalTransition(f"guest {guest_id} is not suspended")
        return str(self._path(guest_id))

    async def expect(self, guest_id: str) -> str:
        path = self._arriving(guest_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    async def unpack(self, guest_id: str, uid: str, incarnation: int, make_plan: Callable[[], GuestPlan]) -> None:
        async with self._lock(guest_id):
            found, plan, path = self._read(guest_id), make_plan(), self._arriving(guest_id)
            if found is not None and (found.state != "suspended" or found.plan.uid != uid):
                raise IllegalTransition(f"guest {found.plan.name} is on this node already")
            try:
                guest = msgspec.json.decode(path.read_bytes(), type=FakeGuest)
            except (OSError, msgspec.DecodeError) as problem:
                raise DriverFailed(f"guest {plan.name}: its saved memory hasn't come whole") from problem
            if guest.plan.machine != plan.machine:
                raise InvalidInput(f"guest {plan.name}: its saved memory is of another machine", field="machine")
            self._write(FakeGuest(plan, "suspended", guest.boot_id, guest.started_at, guest.pid))
            path.unlink()

    def _arriving(self, guest_id: str) -> Path:
        return self._path(guest_id).with_suffix(".arriving-memory")
