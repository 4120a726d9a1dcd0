"""Shortens chains in the background: what a layer holds that no snapshot needs is copied into the file above, and the layer goes.

One layer at a time on a node, with pauses. It gives way to everything else that happens to the disks: to the steps of their
allocation, its migration, a snapshot or a restore. All of it may be cut off anywhere and is repeated: until the copy is whole,
the chain has the layer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import msgspec

from weft.agent.image.cache import ImageCache
from weft.agent.problem import describe_problem
from weft.agent.server.reporter import Reporter
from weft.agent.snapshot.disks import AllocatedDisk, LayeredDisk, UnattachedVolume
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.snapshot.turns import DiskTurns, list_ids
from weft.agent.state.table import AllocationTable
from weft.agent.volume.inventory import Volumes
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import MOST_LAYERS, HasLayers
from weft.objects.errors import IllegalTransition, NotFound, WeftError

LOOK_SECONDS = 60.0
LOOK_AGAIN_SECONDS = 600.0  # at chains that were as short as can be, though nothing is known to have changed
WATCH_SECONDS = 0.5  # how soon it notices that it must give way to what isn't a step
LEAST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0  # between two layers: as long as the last one took
FEW_LEFT = 5  # so many layers before the limit, people are warned
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 60.0, 900.0

log = logging.getLogger("weft.agent")


class PutOff(msgspec.Struct, frozen=True):
    """A disk whose layer couldn't be absorbed."""

    why: str
    until: float  # elapsed seconds
    pause: float


class Absorption:
    def __init__(
        self,
        pools: Pools,
        volumes: Volumes,
        table: AllocationTable,
        runtimes: Runtimes,
        images: ImageCache,
        kept: KeptSnapshots,
        turns: DiskTurns,
        reporter: Reporter,
        clock: Clock,
    ) -> None:
        self._pools, self._volumes, self._table = pools, volumes, table
        self._runtimes, self._images = runtimes, images
        self._kept, self._turns, self._reporter, self._clock = kept, turns, reporter, clock
        self._put_off: dict[str, PutOff] = {}  # by the disk's id
        self._told: dict[str, int] = {}  # by the disk's id: the length that people know of
        self._short: set[str] = set()  # disks that had nothing to absorb, as of ...
        self._as_of = (-1, 0.0)  # ... this version of what is kept, and this moment

    async def keep(self) -> None:
        """Look for such layers again and again."""
        while True:
            try:
                await self.absorb_all()
            except Exception:  # a defect in it must not end the agent
                log.exception("absorption of layers")
            await self._kept.changed.wait(LOOK_SECONDS)

    async def absorb_all(self) -> None:
        """Absorb what may be absorbed now."""
        if not any(isinstance(driver, HasLayers) for driver in self._pools.drivers()):
            return
        version, now = self._kept.version, self._clock.elapsed()
        if version != self._as_of[0] or now - self._as_of[1] >= LOOK_AGAIN_SECONDS:
            self._as_of = version, now
            self._short.clear()
        present: set[str] = set()
        for disk in self._list_disks():
            present.add(disk.id)
            while disk.id not in self._short and await self._absorb_one(disk):
                pass
        self._short &= present
        for id_ in self._put_off.keys() - present:
            del self._put_off[id_]
        self._told = {id_: length for id_, length in self._told.items() if id_ in present}

    def _list_disks(self) -> Iterator[LayeredDisk]:
        """One after the other: what is done to one takes its time."""
        parts = (self._pools, self._table, self._runtimes, self._images, self._turns)
        for state in self._table:
            for disk in list_ids(state.local):
                yield AllocatedDisk(state, disk, *parts)
        for uid in sorted(self._volumes.unattached):
            if (one := UnattachedVolume(uid, self._pools, self._table, self._turns)).may():
                yield one

    async def _absorb_one(self, disk: LayeredDisk) -> bool:
        """Absorb one layer of a disk, and pause; whether that was done."""
        began = self._clock.elapsed()
        put_off = self._put_off.get(disk.id)
        if (put_off is not None and began < put_off.until) or not disk.may():
            return False
        try:
            if not await self._absorb(disk):
                return False
        except (NotFound, IllegalTransition) as problem:  # the guest or its disk has just gone, or it begins to migrate
            log.debug("%s: %s", disk.what, problem)
            return False
        except (WeftError, OSError) as problem:
            self._note(disk, describe_problem(problem)[1])
            return False
        self._put_off.pop(disk.id, None)
        self._kept.wake()
        took = self._clock.elapsed() - began
        await self._clock.sleep(min(LONGEST_PAUSE_SECONDS, max(LEAST_PAUSE_SECONDS, took)))
        return True

    async def _absorb(self, disk: LayeredDisk) -> bool:
        """Absorb the disk's topmost unneeded layer: one below it then takes the same way once. Raises WeftError, OSError."""
        layers = await disk.find_layers()
        if layers is None:
            return False
        chain = await layers.list_layers(disk.id)
        unneeded = await layers.list_unneeded(disk.id) if chain else []
        if not unneeded:
            self._short.add(disk.id)
            self._warn_of_length(disk, len(chain))
            return False
        if not disk.may():
            return False
        watching = asyncio.ensure_future(self._watch(disk))
        try:
            return await self._turns.work(disk.together, disk.take(layers, unneeded[-1]))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, disk: LayeredDisk) -> None:
        """Give way as soon as a migration begins, or another workload gets the disk."""
        while disk.may():
            await self._clock.sleep(WATCH_SECONDS)
        await self._turns.stop(disk.together)

    def _warn_of_length(self, disk: LayeredDisk, length: int) -> None:
        """Say once for each length that snapshots will soon be refused."""
        described = disk.describe()
        if described is not None and length > self._told.get(disk.id, MOST_LAYERS - FEW_LEFT):
            workload, what = described
            message = (
                f"{what} stands on {length} layers, and soon on too many for another snapshot: delete snapshots of it"
            )
            self._reporter.put_event(workload, "Warning", "ManyLayers", message)
        self._told[disk.id] = max(length, MOST_LAYERS - FEW_LEFT)

    def _note(self, disk: LayeredDisk, why: str) -> None:
        """Try again later; say so once."""
        before = self._put_off.get(disk.id)
        pause = FIRST_RETRY_SECONDS if before is None else min(LONGEST_RETRY_SECONDS, before.pause * 2)
        self._put_off[disk.id] = PutOff(why, self._clock.elapsed() + pause, pause)
        if before is None or before.why != why:
            log.warning("%s: a layer that no snapshot needs can't be absorbed yet: %s", disk.what, why)
