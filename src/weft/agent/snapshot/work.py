"""How orders for volumes by themselves are done: snapshots of them, volumes from snapshots, and volumes that go back to snapshots.

What became of an order is remembered a while: a server that is late with an answer may ask for it again, when the volume is long in
use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from msgspec.structs import replace

from weft.agent.orders.executor import Handler
from weft.agent.problem import describe_problem
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.snapshot.turns import DiskTurns
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.snapshots import name_layer
from weft.agent.state.table import AllocationTable
from weft.agent.state.workload_kinds import WORKLOAD_KINDS
from weft.agent.volume.inventory import Volumes
from weft.agent.volume.pools import Pools
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import CanTake, HasLayers, KeptDisk, KeptSnapshot, TakenFacts
from weft.contracts.driver.volume import HasPool, VolumeDriver
from weft.kinds.parts.snapshot.volume_work import OrderedVolume, VolumeOrder, VolumeReport
from weft.objects.errors import DriverFailed, IllegalTransition, NotFound, WeftError
from weft.objects.identity import short_id

log = logging.getLogger("weft.agent")
RETRY_SECONDS = 2.0  # of what another piece of work keeps from being done
FAILED_SECONDS = 30.0  # of what failed and may pass, like a full disk
_ALIVE = ("starting", "running", "paused")
# What doesn't pass: another try would end the same.
_FINAL = ("snapshotGone", "unsupported", "noPool")


class VolumeWork(Handler[VolumeOrder, VolumeReport]):
    def __init__(
        self,
        pools: Pools,
        volumes: Volumes,
        kept: KeptSnapshots,
        table: AllocationTable,
        turns: DiskTurns,
        clock: Clock,
    ) -> None:
        self._pools, self._volumes, self._kept = pools, volumes, kept
        self._table, self._turns, self._clock = table, turns, clock

    def begin(self, order: VolumeOrder, former: VolumeReport | None) -> VolumeReport:
        if former is not None and former.phase == "working":
            return former
        report = VolumeReport(uid=order.uid, act=order.act, generation=order.generation)
        return replace(report, message=former.message) if former is not None else report

    async def do(self, order: VolumeOrder, show: Callable[[VolumeReport], None]) -> VolumeReport:
        return replace(await self._act(order, self.begin(order, None)), phase="done")

    def fail(self, order: VolumeOrder, problem: Exception) -> tuple[VolumeReport, float | None]:
        reason, message = describe_problem(problem)
        report = self.begin(order, None)
        if isinstance(problem, IllegalTransition) and reason != "inUse":  # something else is being done to it
            return replace(report, message=problem.message), RETRY_SECONDS
        names = ", ".join(volume.name for volume in order.volumes)
        for volume in order.volumes:
            message = message.replace(volume.uid, volume.name)
        log.warning("%s of volume %s for snapshot %s: %s", order.act, names, order.snapshot_name, message)
        again = order.act != "take" and reason not in _FINAL and reason != "inUse"
        report = replace(report, phase="failed", again=again, reason=reason, message=message)
        return report, FAILED_SECONDS if again else None

    async def _act(self, order: VolumeOrder, report: VolumeReport) -> VolumeReport:
        """Raises WeftError, OSError; IllegalTransition for what is tried again soon."""
        ids = [volume.uid for volume in order.volumes]
        holders = [one for one in self._table if {volume.uid for volume in one.local.spec.volumes} & set(ids)]
        if order.act != "take" and any(_holds(one) for one in holders):
            raise IllegalTransition("its volume is attached to a workload on this node: it waits until that is gone")
        machine = next((one.local for one in holders if _has_machine(one.local)), None)
        if order.act == "take" and machine is not None:
            of = machine.spec.workload
            hint = f"take a snapshot of that: weft {of.kind} snapshot {of.name}"
            raise IllegalTransition(f"{machine.what} has it; {hint}", reason="inUse", hint=hint)
        runs = any(_runs(one) for one in holders)
        async with AsyncExitStack() as stack:
            apart = [] if runs and order.act == "take" else ids  # the driver sees to those that a container has mounted
            if not await stack.enter_async_context(self._turns.exclusive(apart)):
                raise IllegalTransition("its volume is being worked on: it waits for that")
            if order.act == "take":
                return await self._take(order, report)
            return await self._restore(order, report)

    # --- take -----------------------------------------------------------------------------------------------------------

    async def _take(self, order: VolumeOrder, report: VolumeReport) -> VolumeReport:
        """All of it or nothing is kept."""
        taken: list[TakenFacts] = []
        taken_at = self._clock.now()
        try:
            for driver, volumes in (await self._find_pools(order.volumes)).values():
                if not isinstance(driver, CanTake):
                    raise DriverFailed(f"storage pool {driver.name} can't take snapshots", reason="unsupported")
                disks = {volume.uid: KeptDisk((), 0, volume.name) for volume in volumes}
                snapshot = KeptSnapshot(short_id(order.snapshot), order.snapshot, disks, taken_at=taken_at)
                layers = {volume.uid: name_layer(order.snapshot, volume.uid) for volume in volumes}
                taken.append(await driver.taking.take(snapshot, layers))
        except (WeftError, OSError):
            await self._drop(order)
            raise
        await self._kept.refresh()  # the server hears that it is kept no later than that it is ready
        kept = [one for driver in self._layered() for one in await driver.layers.list_kept()]
        kept = [one for one in kept if one.uid == order.snapshot]
        first = order.volumes[0]
        frozen = any(facts.consistency == "filesystem" for facts in taken)
        return replace(
            report,
            consistency="filesystem" if frozen else "stopped",
            disks={disk: facts.size_bytes for one in kept for disk, facts in one.disks.items()},
            size=sum(one.used_bytes for one in kept),
            pause_ms=max((facts.pause_ms for facts in taken), default=0.0),
            taken_at=min((one.taken_at for one in kept if one.taken_at), default=taken_at),
            pool=first.pool,
            pool_id=await self._find_storage(first),
        )

    async def _drop(self, order: VolumeOrder) -> None:
        for driver in self._layered():
            await driver.layers.drop(short_id(order.snapshot))
        self._kept.wake()

    # --- make, replace --------------------------------------------------------------------------------------------------

    async def _restore(self, order: VolumeOrder, report: VolumeReport) -> VolumeReport:
        volume = order.volumes[0]
        driver = await self._pools.find(volume.pool, volume.pool_id)
        if not isinstance(driver, HasLayers):
            raise DriverFailed(f"storage pool {volume.pool} can't keep snapshots", reason="unsupported")
        snapshot = short_id(order.snapshot)
        kept = [one for one in await driver.layers.list_kept() if one.id == snapshot]
        if not kept or order.disk not in kept[0].disks:
            raise NotFound(
                f"snapshot/{order.snapshot_name} of the volume is not in storage pool {volume.pool} of this node",
                reason="snapshotGone",
                hint="restore another snapshot",
            )
        if order.act == "make":
            facts = await driver.layers.clone(volume.uid, snapshot, order.disk, size_bytes=order.size)
        else:
            layer = name_layer(f"{volume.uid}/{order.generation}", volume.uid)
            facts = await driver.layers.replace(volume.uid, snapshot, order.disk, layer)
            if facts.size_bytes < order.size:  # it has grown since
                facts = await driver.grow(volume.uid, order.size)
        self._volumes.uids.add(volume.uid)
        self._kept.wake()
        storage = await self._find_storage(volume)
        return replace(report, disks={volume.uid: facts.size_bytes}, pool=volume.pool, pool_id=storage)

    # --------------------------------------------------------------------------------------------------------------------

    async def _find_pools(
        self, volumes: Sequence[OrderedVolume]
    ) -> dict[int, tuple[VolumeDriver, list[OrderedVolume]]]:
        """Each of their pools once, and the volumes in it. Raises DriverFailed."""
        found: dict[int, tuple[VolumeDriver, list[OrderedVolume]]] = {}
        for volume in volumes:
            driver = await self._pools.find(volume.pool, volume.pool_id)
            found.setdefault(id(driver), (driver, []))[1].append(volume)
        return found

    async def _find_storage(self, volume: OrderedVolume) -> str:
        driver = await self._pools.find(volume.pool, volume.pool_id)
        return (await asyncio.to_thread(driver.pool)).id if isinstance(driver, HasPool) else ""

    def _layered(self) -> list[HasLayers]:
        return [driver for driver in self._pools.drivers() if isinstance(driver, HasLayers)]


def _runs(state: AllocationState) -> bool:
    return state.guest is not None and state.guest.state in _ALIVE


def _holds(state: AllocationState) -> bool:
    """Whether the workload has its volumes, or may start again: what runs once and has ended rests until it is deleted."""
    return state.checkpoint.made and (_runs(state) or not state.local.spec.once)


def _has_machine(local: LocalAllocation) -> bool:
    """Whether snapshots of its volumes are taken with those of its machine."""
    return WORKLOAD_KINDS[local.spec.workload.kind].snapshots == "machine"
