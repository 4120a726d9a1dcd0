"""The storage pools of a node, by name: where its disks are, and which storage each pool is.

A pool on other storage than the allocation's is refused: the disk is elsewhere, and must not pass for one that was never made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from weft.contracts.clock import Clock
from weft.contracts.driver.layers import HasLayers
from weft.contracts.driver.runtime import DiskLayer
from weft.contracts.driver.volume import HasOsds, HasPool, VolumeDriver, VolumeFacts
from weft.contracts.wakeup import Wake
from weft.kinds.allocation import LOCAL, ROOT, AllocationSpec, list_disks
from weft.kinds.node import NodeOsd, NodePool
from weft.objects.errors import DriverFailed, InvalidInput, WeftError

CHECK_SECONDS = 15.0
FILL_SECONDS = 5.0  # where a look costs little: a disk that fills has to be seen before it is full
CHECK_LIMIT_SECONDS = 10.0
_GRAINS = 100  # free space is reported in such shares of the total

log = logging.getLogger("weft.agent")


class Pools:
    """``local`` is the pool that every node has. ``news`` is set when there is something new to report."""

    def __init__(
        self, local: VolumeDriver, others: Mapping[str, VolumeDriver], clock: Clock, news: asyncio.Event
    ) -> None:
        self._drivers = {LOCAL: local, **others}
        self._clock, self._news = clock, news
        self.facts: list[NodePool] = []
        self.snapshots_changed = Wake(clock)  # rung when they keep other snapshots than before

    def drivers(self) -> list[VolumeDriver]:
        return list(self._drivers.values())

    def named(self) -> list[tuple[str, VolumeDriver]]:
        """The drivers by their pools' names."""
        return list(self._drivers.items())

    async def find(self, name: str, storage: str = "") -> VolumeDriver:
        """The pool's driver. Raises DriverFailed (``noPool``) if it is missing, or on other storage than ``storage``."""
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
        """The facts of a disk; ``id_`` is its driver's id, also of a root disk. Raises WeftError."""
        return await (await self.of(spec, disk)).inspect(id_)

    async def list_layers(self, spec: AllocationSpec, id_: str, disk: str = ROOT) -> list[DiskLayer]:
        """List the layers between a disk's image and its file, bottom first. Raises WeftError."""
        driver = await self.of(spec, disk)
        if not isinstance(driver, HasLayers):
            return []
        layers = await driver.layers.list_layers(id_)
        return [DiskLayer(one.path, one.format, one.server) for one in layers if one.format != "rbd"]

    async def refuse_layers(self, spec: AllocationSpec, id_: str, disk: str, what: str) -> None:
        """Raise InvalidInput (``unsupported``) for a disk that can't go to other storage, since what it stands on would stay."""
        if await self.list_layers(spec, id_, disk):
            name = "root disk" if disk == ROOT else f"volume {next(v.name for v in spec.volumes if v.uid == disk)}"
            raise InvalidInput(
                f"{what}: its {name} stands on snapshots, which can't go to other storage with it",
                reason="unsupported",
                hint="delete the snapshots of it and try again a minute later, or migrate it to a node that shares its "
                "storage pool",
            )

    async def refuse_elsewhere(
        self, spec: AllocationSpec, id_: str, disk: str, what: str, *, migrate: str = "migrate it"
    ) -> None:
        """Raise DriverFailed (``otherPool``) if another pool of this node has the disk, which must not be made anew: a server
        restored from before its relocation doesn't know. ``migrate``: the hint's verb, how its workload can follow."""
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
        """Another pool of this node that has the disk, if its own doesn't; else "". A broken pool is skipped."""
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
                async with asyncio.timeout(CHECK_LIMIT_SECONDS):  # a network's file system may not answer at all
                    await asyncio.to_thread(driver.pool)
            return await driver.inspect(id_) is not None
        except (WeftError, OSError, TimeoutError) as problem:
            log.debug("can't look for disk %s in %s: %s", id_, driver.name, problem or "it doesn't answer")
            return False

    async def keep(self) -> None:
        """Refresh the pools' facts again and again; those of a cluster, which takes programs, less often."""
        while True:
            await self.refresh()
            for _ in range(round(CHECK_SECONDS / FILL_SECONDS) - 1):
                await self._clock.sleep(FILL_SECONDS)
                await self.refresh(all_=False)
            await self._clock.sleep(FILL_SECONDS)

    async def refresh(self, *, all_: bool = True) -> None:
        """Inspect each pool now; without ``all_`` only those on file systems."""
        known = {} if all_ else {one.name: one for one in self.facts if isinstance(self._drivers[one.name], HasOsds)}
        facts = [known.get(name) or await self._describe(name, driver) for name, driver in self._drivers.items()]
        if facts != self.facts:
            self.facts = facts
            self._news.set()

    async def find_gone(self, ids: Collection[str]) -> set[str]:
        """The ``ids`` whose disks are in none of the pools; empty while a pool can't be used."""
        gone = set(ids)
        try:
            for driver in self._drivers.values() if gone else ():
                if isinstance(driver, HasPool):
                    await asyncio.to_thread(
                        driver.pool
                    )  # raises if the pool isn't mounted: then absence proves nothing
                gone -= {id_ for id_ in gone if await driver.inspect(id_) is not None}
        except (WeftError, OSError) as problem:
            log.debug("can't check for removed disks: %s", problem)
            return set()
        return gone

    async def _describe(self, name: str, driver: VolumeDriver) -> NodePool:
        if not isinstance(driver, HasPool):
            return NodePool(name)
        try:
            async with asyncio.timeout(CHECK_LIMIT_SECONDS):  # a network's file system may not answer at all
                found = await asyncio.to_thread(driver.pool)
        except (WeftError, OSError, TimeoutError) as problem:
            log.warning("can't use storage pool %s: %s", name, problem or "it doesn't answer")
            return NodePool(name, problem=str(problem) or "it doesn't answer", driver=driver.name)
        grain = max(1, found.total_bytes // _GRAINS)
        free = found.free_bytes // grain * grain
        return NodePool(name, found.id, found.total_bytes, free, driver=driver.name, osds=await _inspect_osds(driver))


async def _inspect_osds(driver: VolumeDriver) -> list[NodeOsd]:
    if not isinstance(driver, HasOsds):
        return []
    try:
        osds = await asyncio.to_thread(driver.osds)
    except (WeftError, OSError) as problem:
        log.debug("OSDs can't be inspected: %s", problem)
        return []
    return [NodeOsd(one.name, one.total_bytes, one.used_bytes, one.latency_ms, one.problem) for one in osds]
