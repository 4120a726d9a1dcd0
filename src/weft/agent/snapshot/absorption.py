"""Shortens chains in the background: what a layer holds that no snapshot needs is copied into the file above, and the layer goes.

One layer at a time on a node, with pauses. It gives way to everything else that happens to the disks: to the steps of their
allocation, its migration, a snapshot or a restore. All of it may be cut off anywhere and is repeated: until the copy is whole,
the chain has the layer.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from weft.agent.image.cache import ImageCache
from weft.agent.problem import describe_problem
from weft.agent.server.reporter import Reporter
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.snapshot.turns import DiskTurns, list_ids
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.snapshots import find_snapshots
from weft.agent.state.table import AllocationTable
from weft.agent.volume.pools import Pools
from weft.agent.workload.kinds import kind_of
from weft.agent.workload.runtimes import Runtimes
from weft.agent.workload.shape import ROOT_SERIAL, name_serial
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import MOST_LAYERS, HasLayers, Layers
from weft.contracts.driver.snapshot import CanSnapshot
from weft.kinds.allocation import ROOT, list_disks
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
        table: AllocationTable,
        runtimes: Runtimes,
        images: ImageCache,
        kept: KeptSnapshots,
        turns: DiskTurns,
        reporter: Reporter,
        clock: Clock,
    ) -> None:
        self._pools, self._table, self._runtimes, self._images = pools, table, runtimes, images
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
        for state in self._table:
            for disk, id_ in list_ids(state.local).items():
                present.add(id_)
                while id_ not in self._short and await self._absorb_one(state, disk, id_):
                    pass
        self._short &= present
        for id_ in self._put_off.keys() - present:
            del self._put_off[id_]
        self._told = {id_: length for id_, length in self._told.items() if id_ in present}

    async def _absorb_one(self, state: AllocationState, disk: str, id_: str) -> bool:
        """Absorb one layer of a disk, and pause; whether that was done."""
        began = self._clock.elapsed()
        put_off = self._put_off.get(id_)
        if (put_off is not None and began < put_off.until) or not self._may(state, disk):
            return False
        try:
            if not await self._absorb(state, disk, id_):
                return False
        except (NotFound, IllegalTransition) as problem:  # the guest or its disk has just gone, or it begins to migrate
            log.debug("%s: %s", state.local.what, problem)
            return False
        except (WeftError, OSError) as problem:
            self._note(state.local, id_, describe_problem(problem)[1])
            return False
        self._put_off.pop(id_, None)
        self._kept.wake()
        took = self._clock.elapsed() - began
        await self._clock.sleep(min(LONGEST_PAUSE_SECONDS, max(LEAST_PAUSE_SECONDS, took)))
        return True

    async def _absorb(self, state: AllocationState, disk: str, id_: str) -> bool:
        """Absorb the disk's topmost unneeded layer: one below it then takes the same way once. Raises WeftError, OSError."""
        driver = await self._pools.of(state.local.spec, disk)
        if not isinstance(driver, HasLayers):
            return False
        unneeded = await driver.layers.list_unneeded(id_)
        if not unneeded:
            self._short.add(id_)
            self._warn_of_length(state.local, disk, id_, len(await driver.layers.list_layers(id_)))
            return False
        if not self._may(state, disk):
            return False
        disks = list_ids(state.local).values()
        watching = asyncio.ensure_future(self._watch(state, disk))
        try:
            return await self._turns.work(disks, self._take(state, disk, id_, driver.layers, unneeded[-1]))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _take(self, state: AllocationState, disk: str, id_: str, layers: Layers, layer: str) -> None:
        local = state.local
        if _runs(state):
            runtime = self._runtimes.of(local)
            path = next((one.path for one in await layers.list_layers(id_) if one.id == layer), None)
            if path is None or not isinstance(runtime, CanSnapshot):
                raise NotFound(f"{local.what}: layer {layer} is not in its disk's chain")
            await runtime.snapshots.absorb(local.id, _name_serial(local, disk), path)
            await layers.forget_layer(id_, layer)
            return
        if disk != ROOT:
            await layers.absorb_layer(id_, layer, base=None, base_format="qcow2")
            return
        image = local.spec.image
        base = self._images.find(image.sha256) if image is not None else None
        if base is None:  # what is at the bottom of the chain isn't known
            raise NotFound(f"{local.what}: its image is not on this node")
        await layers.absorb_layer(id_, layer, base=base.disk, base_format=base.disk_format)

    async def _watch(self, state: AllocationState, disk: str) -> None:
        """Give way as soon as a migration begins, or another workload gets the disk."""
        while self._may(state, disk):
            await self._clock.sleep(WATCH_SECONDS)
        await self._turns.stop(list_ids(state.local).values())

    def _may(self, state: AllocationState, disk: str) -> bool:
        local, checkpoint = state.local, state.checkpoint
        spec, guest = local.spec, state.guest
        if state.released or local.deleting or state.superseded or not checkpoint.made or guest is None:
            return False
        if spec.role != "active" or checkpoint.migration is not None or self._table.states.get(local.uid) is not state:
            return False
        is_relocated = checkpoint.relocation is not None and checkpoint.relocation.state in ("copying", "there")
        if is_relocated or spec.storage is not None or find_snapshots(local, checkpoint):
            return False
        if disk == ROOT:
            if not kind_of(spec).has_root_disk:
                return False
        elif any(other is not state and disk in list_disks(other.local.spec) for other in self._table):
            return False
        if _runs(state):
            return isinstance(self._runtimes.find(local), CanSnapshot)
        return guest.state in ("absent", "stopped", "failed") and self._turns.is_free(list_ids(local).values())

    def _warn_of_length(self, local: LocalAllocation, disk: str, id_: str, length: int) -> None:
        """Say once for each length that snapshots will soon be refused."""
        if length > self._told.get(id_, MOST_LAYERS - FEW_LEFT):
            name = next((volume.name for volume in local.spec.volumes if volume.uid == disk), "")
            what = f"volume {name}" if name else "the root disk"
            message = f"{what} stands on {length} layers of at most {MOST_LAYERS}; delete snapshots that are not needed"
            self._reporter.put_event(local.spec.workload, "Warning", "ManyLayers", message)
        self._told[id_] = max(length, MOST_LAYERS - FEW_LEFT)

    def _note(self, local: LocalAllocation, id_: str, why: str) -> None:
        """Try again later; say so once."""
        before = self._put_off.get(id_)
        pause = FIRST_RETRY_SECONDS if before is None else min(LONGEST_RETRY_SECONDS, before.pause * 2)
        self._put_off[id_] = PutOff(why, self._clock.elapsed() + pause, pause)
        if before is None or before.why != why:
            log.warning("%s: a layer that no snapshot needs can't be absorbed yet: %s", local.what, why)


def _runs(state: AllocationState) -> bool:
    return state.guest is not None and state.guest.state == "running"


def _name_serial(local: LocalAllocation, disk: str) -> str:
    named = {volume.uid: name_serial(volume.name) for volume in local.spec.volumes}
    return ROOT_SERIAL if disk == ROOT else named[disk]
