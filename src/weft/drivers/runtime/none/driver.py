"""The runtime driver of a node that runs no VMs, such as a small box at the edge: the scheduler places none there."""

from __future__ import annotations

import asyncio

from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import GuestFacts, GuestPlan, RuntimeProbe
from weft.objects.errors import DriverFailed


class NoMachines:
    """A RuntimeDriver without guests."""

    name = "none"

    def __init__(self, host: Host, clock: Clock | None = None) -> None:
        pass

    async def probe(self) -> RuntimeProbe:
        return RuntimeProbe(self.name, False, "", "", [], [], [])

    async def start(self, plan: GuestPlan) -> GuestFacts:
        raise DriverFailed(f"guest {plan.name}: this node runs no VMs (runtime: none)")

    async def stop(self, guest_id: str, *, grace_seconds: float) -> None:
        """Do nothing: there is no guest."""

    async def inspect(self, guest_id: str) -> GuestFacts:
        return GuestFacts(guest_id, "", "", 0, "absent")

    async def recover(self) -> list[GuestFacts]:
        return []

    async def remove(self, guest_id: str) -> None:
        """Do nothing: there is no guest."""

    async def changed(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing is open."""
