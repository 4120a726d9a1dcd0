"""The storage pools of a node, by name: where its disks are, and which storage each pool is.

A pool that is other storage than an allocation says is not used for it: what it looks for is elsewhere, and a disk that is
missing must not be taken for one that was never made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from weft.contracts.clock import Clock
from weft.contracts.driver.volume import HasPool, VolumeDriver, VolumeFacts
from weft.kinds.allocation import LOCAL, ROOT, AllocationSpec, list_disks
from weft.kinds.node import NodePool
from weft.objects.errors import DriverFailed, WeftError

LOOK_SECONDS = 15.0
LOOK_LIMIT_SECONDS = 10.0
_GRAINS = 100  # what is free is told in such shares of all

log = logging.getLogger("weft.agent")


class Pools:
    """``local`` is the one that every node has. ``news`` is set when there is something new to report."""

    def __init__(
        self, local: VolumeDriver, others: Mapping[str, VolumeDriver], clock: Clock, news: asyncio.Event
    ) -> None:
        self._drivers = {LOCAL: local, **others}
        self._clock, self._news = clock, news
        self.facts: list[NodePool] = []

    def drivers(self) -> list[VolumeDriver]:
        return list(self._drivers.values())

    async def find(self, name: str, storage: str = "") -> VolumeDriver:
        """The pool's disks. Raises DriverFailed (``noPool``) for one that isn't there, or is other storage than ``storage``."""
        driver = self._drivers.get(name)
        if driver is None:
            raise DriverFailed(
                f"this node has no storage pool {name}",
                reason="noPool",
                hint=f"start its agent with --pool {name}=PATH",
                details={"step": "disk"},
            )
        if storage and isinstance(driver, HasPool):
            there = (await asyncio.to_thread(driver.pool)).id
            if there != storage:
                raise DriverFailed(
                    f"storage pool {name} of this node is storage {there}, but the disk is on storage {storage}",
                    reason="noPool",
                    hint="check that it is mounted",
                    details={"step": "disk"},
                )
        return driver

    async def of(self, spec: AllocationSpec, disk: str) -> VolumeDriver:
        """The pool of one of an allocation's disks: ROOT, or a volume's uid. Raises DriverFailed."""
        return await self.find(*list_disks(spec)[disk])

    async def inspect(self, spec: AllocationSpec, id_: str, disk: str = ROOT) -> VolumeFacts | None:
        """What is known of a disk: root disks bear another id than ROOT. Raises WeftError."""
        return await (await self.of(spec, disk)).inspect(id_)

    async def refuse_elsewhere(
        self, spec: AllocationSpec, id_: str, disk: str, what: str, *, migrate: str = "migrate it"
    ) -> None:
        """Raise DriverFailed (``otherPool``) for a disk that would be made anew though another pool of this node has it: a server
        restored from before it was relocated doesn't know. ``migrate`` is for the hint: how its workload can follow."""
        other = await self.find_elsewhere(spec, id_, disk)
        if other:
            pool = list_disks(spec)[disk][0]
            raise DriverFailed(
                f"{what} is in storage pool {other} of this node, but the server has it in {pool}",
                reason="otherPool",
                hint=f"{migrate} with --storage --pool {other}: the data stays in place, and the server learns where it is",
                details={"step": "disk"},
            )

    async def find_elsewhere(self, spec: AllocationSpec, id_: str, disk: str) -> str:
        """Another pool of this node that has the disk, if its own doesn't; empty if none has. A pool that can't be used is not
        asked."""
        broken = {one.name for one in self.facts if one.problem}
        others = self._drivers.keys() - broken - {list_disks(spec)[disk][0]}
        if not others or await self.inspect(spec, id_, disk) is not None:
            return ""
        for other in sorted(others):
            if await self._has(self._drivers[other], id_):
                return other
        return ""

    async def _has(self, driver: VolumeDriver, id_: str) -> bool:
        try:
            if isinstance(driver, HasPool):
                async with asyncio.timeout(LOOK_LIMIT_SECONDS):  # a network's file system may not answer at all
                    await asyncio.to_thread(driver.pool)
            return await driver.inspect(id_) is not None
        except (WeftError, OSError, TimeoutError) as problem:
            log.debug("%s can't be asked for disk %s: %s", driver.name, id_, problem or "it doesn't answer")
            return False

    async def keep(self) -> None:
        """Look at the pools again and again."""
        while True:
            await self.refresh()
            await self._clock.sleep(LOOK_SECONDS)

    async def refresh(self) -> None:
        """What there is to tell of each, now."""
        facts = [await self._describe(name, driver) for name, driver in self._drivers.items()]
        if facts != self.facts:
            self.facts = facts
            self._news.set()

    async def find_gone(self, ids: Collection[str]) -> set[str]:
        """Those of ``ids`` whose disks are in none of the pools; none while a pool can't be used."""
        gone = set(ids)
        try:
            for driver in self._drivers.values() if gone else ():
                if isinstance(driver, HasPool):
                    await asyncio.to_thread(driver.pool)  # what isn't mounted isn't gone
                gone -= {id_ for id_ in gone if await driver.inspect(id_) is not None}
        except (WeftError, OSError) as problem:
            log.debug("removed disks can't be checked: %s", problem)
            return set()
        return gone

    async def _describe(self, name: str, driver: VolumeDriver) -> NodePool:
        if not isinstance(driver, HasPool):
            return NodePool(name)
        try:
            async with asyncio.timeout(LOOK_LIMIT_SECONDS):  # a network's file system may not answer at all
                found = await asyncio.to_thread(driver.pool)
        except (WeftError, OSError, TimeoutError) as problem:
            log.warning("storage pool %s can't be used: %s", name, problem or "it doesn't answer")
            return NodePool(name, problem=str(problem) or "it doesn't answer")
        grain = max(1, found.total_bytes // _GRAINS)
        return NodePool(name, found.id, found.total_bytes, found.free_bytes // grain * grain)
