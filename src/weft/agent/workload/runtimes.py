"""The node's runtime drivers, by the kind of workload, and by the isolation if it isn't the kind's default."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from weft.agent.state.allocation import LocalAllocation
from weft.contracts.driver.runtime import (
    CanAdjust,
    CanHold,
    CanSuspend,
    GuestFacts,
    GuestPlan,
    HasStats,
    RuntimeDriver,
    RuntimeProbe,
    TakesNamespace,
)
from weft.objects.errors import InvalidInput

Driver = RuntimeDriver[Any]


def name_runtime(local: LocalAllocation) -> str:
    """The key of the driver that runs ``local``: its kind, or KIND/ISOLATION."""
    container, kind = local.spec.container, local.spec.workload.kind
    return kind if container is None or container.isolation == "container" else f"{kind}/{container.isolation}"


class Runtimes:
    """``drivers`` by kind, or KIND/ISOLATION; a driver may have several keys. ``others``, with the same keys, start nothing new:
    they only continue the guests that they find."""

    def __init__(self, drivers: Mapping[str, Driver], others: Mapping[str, Driver] | None = None) -> None:
        self._by_kind, self._others = dict(drivers), dict(others or {})
        self._offered = list(dict.fromkeys(self._by_kind.values()))
        self._drivers = list(dict.fromkeys((*self._offered, *self._others.values())))
        # Cached because isinstance with a protocol is slow, and every guest is checked every few seconds.
        self._measuring: dict[Driver, HasStats] = {
            driver: driver for driver in self._drivers if isinstance(driver, HasStats)
        }
        self._adjusting = {driver for driver in self._drivers if isinstance(driver, CanAdjust)}
        self._suspending = {driver for driver in self._drivers if isinstance(driver, CanSuspend)}
        self.holding: dict[Driver | None, CanHold] = {
            driver: driver for driver in self._drivers if isinstance(driver, CanHold)
        }
        self._found: dict[str, Driver] = {}  # by the id of a guest that was there at the start
        self._waiting: dict[Driver, asyncio.Task[None]] = {}

    @property
    def machines(self) -> RuntimeDriver[GuestPlan]:
        """The driver that runs VMs."""
        return self._by_kind["vm"]

    def all(self) -> list[Driver]:
        return list(self._drivers)

    def find(self, local: LocalAllocation) -> Driver | None:
        """The driver that runs ``local``, if this node has it."""
        name = name_runtime(local)
        found = self._found.get(local.id)
        return found if found is not None and found is self._others.get(name) else self._by_kind.get(name)

    def can_adjust(self, local: LocalAllocation) -> bool:
        """Whether its driver can change it while it runs."""
        return self.find(local) in self._adjusting

    def can_suspend(self, local: LocalAllocation) -> bool:
        """Whether its driver can suspend it."""
        return self.find(local) in self._suspending

    def meter_of(self, driver: Driver | None) -> HasStats | None:
        """The same driver, if it measures its guests."""
        return None if driver is None else self._measuring.get(driver)

    def in_namespace(self, local: LocalAllocation) -> bool:
        """Whether its NICs lie in a namespace of the node; else they are a machine's taps."""
        return local.shares_kernel or isinstance(self.find(local), TakesNamespace)

    def of(self, local: LocalAllocation) -> Driver:
        """The driver that runs ``local``. Raises InvalidInput (``unsupported``) if this node has none."""
        driver = self.find(local)
        if driver is None:
            kind, _, isolation = name_runtime(local).partition("/")
            raise InvalidInput(
                f"{local.what}: this node can't run {kind}s{' in microVMs' if isolation else ''}",
                reason="unsupported",
                hint="weft node describe NODE shows what it runs",
            )
        return driver

    def find_finder(self, guest_id: str) -> Driver | None:
        """The driver that found this guest at the start."""
        return self._found.get(guest_id)

    def kind_of(self, guest_id: str) -> str:
        """The kind of a guest that was found at the start."""
        driver = self._found.get(guest_id)
        drivers = (*self._by_kind.items(), *self._others.items())
        word = next((word for word, other in drivers if other is driver), "vm")
        return word.partition("/")[0]

    async def inspect(self, local: LocalAllocation) -> GuestFacts:
        """Its facts now; absent if no driver here runs it."""
        driver, spec = self.find(local), local.spec
        if driver is None:
            return GuestFacts(local.id, local.uid, spec.workload.name, spec.incarnation, "absent")
        return await driver.inspect(local.id)

    async def recover(self) -> list[GuestFacts]:
        """Find every guest of all drivers again; see RuntimeDriver."""
        found = []
        for driver in self._drivers:
            for guest in await driver.recover():
                self._found[guest.id] = driver
                found.append(guest)
        return found

    async def probe(self) -> list[RuntimeProbe]:
        """Probe the drivers that can start new guests."""
        return list(await asyncio.gather(*(driver.probe() for driver in self._offered)))

    async def changed(self) -> None:
        """Return when any guest's facts may have changed. Raises a driver's WeftError."""
        if len(self._drivers) == 1:
            return await self._drivers[0].changed()
        for driver in self._drivers:
            if driver not in self._waiting:
                self._waiting[driver] = asyncio.ensure_future(driver.changed())
        try:
            done, _ = await asyncio.wait(self._waiting.values(), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._end_waiting()  # else they would consume the next caller's change
            raise
        self._waiting = {driver: task for driver, task in self._waiting.items() if task not in done}
        for task in done:
            task.result()

    def _end_waiting(self) -> list[asyncio.Task[None]]:
        waiting, self._waiting = list(self._waiting.values()), {}
        for task in waiting:
            task.cancel()
        return waiting

    async def close(self) -> None:
        await asyncio.gather(*self._end_waiting(), return_exceptions=True)
        for driver in self._drivers:
            await driver.close()
