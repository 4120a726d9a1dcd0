"""Carries out the steps of one allocation. Every step may be repeated; none decides anything.

Acts through the runtime, volume and network drivers and on the seed disk. Called by the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from weft.agent.allocation.plan import Step
from weft.agent.migration.executor import MigrationExecutor
from weft.agent.network.executor import NetworkExecutor
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.snapshot.turns import DiskTurns
from weft.agent.state.allocation import DiskRelocation, LocalAllocation, MigrationState
from weft.agent.state.allocation_state import AllocationState
from weft.agent.workload.kind import NodeParts, Prepared, Show, shared_with_source
from weft.agent.workload.kinds import kind_of
from weft.agent.workload.runtimes import Runtimes
from weft.agent.workload.shape import ROOT_SERIAL
from weft.contracts.driver.container import BEGUN_AFRESH
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import CanAdjust, CanSuspend
from weft.contracts.driver.volume import HasPool, VolumeDriver, VolumeFacts
from weft.contracts.durable_file import write_durably
from weft.kinds.allocation import ROOT, AllocatedNic
from weft.objects.errors import DriverFailed, InvalidInput
from weft.objects.identity import short_id

RUNS = "it may have run here"  # of a guest that can't be given up
SEEDS = ("tar", "nocloud", "machine")


class Work(Prepared, kw_only=True):
    """One turn's work on an allocation: the input of its steps, and the results of each for the next ones."""

    state: AllocationState
    local: LocalAllocation
    migration: MigrationState | None
    relocation: DiskRelocation | None
    leftover: list[AllocatedNic]

    @property
    def begun_migration(self) -> MigrationState:
        assert self.migration is not None
        return self.migration


class StepExecutor:
    def __init__(
        self,
        host: Host,
        runtimes: Runtimes,
        network: NetworkExecutor,
        migrations: MigrationExecutor,
        node: NodeParts,
        snapshots: KeptSnapshots,
        turns: DiskTurns,
    ) -> None:
        self.runtimes, self.migrations = runtimes, migrations
        self._network, self._node = network, node
        self._snapshots, self.turns = snapshots, turns
        self._seeds = Path(host.state_dir) / "seeds"

    async def perform(self, step: Step, work: Work, show: Show) -> str:
        """Do ``step``, and return a detail for people, if any; results for later steps are put into ``work``. Raises WeftError or
        OSError."""
        if step in (Step.IMAGE, Step.FETCH):
            self.runtimes.of(work.local)  # raises before anything is made for a workload that can't run here
            return await kind_of(work.local.spec).fetch_image(self._node, work.local, work, show)
        return await _STEPS[step](self, work) or ""

    async def _disk(self, work: Work) -> str:
        image, local, pools = work.image, work.local, self._node.pools
        if image is None:
            raise DriverFailed(f"{local.what}: its image is not on this node", details={"step": "disk"})
        disks, size = await pools.of(local.spec, ROOT), local.spec.resources.disk
        async with self._node.heavy:
            if ROOT in shared_with_source(local):
                work.root = await _share_root(local, disks)
                work.layers[ROOT] = await pools.list_layers(local.spec, local.id)
                return "shared"
            await pools.refuse_elsewhere(local.spec, local.id, ROOT, f"{local.what}: its root disk")
            work.root = await disks.ensure(local.id, size_bytes=size, base=image.disk, base_format=image.disk_format)
            if work.root.size_bytes < size and ROOT_SERIAL not in work.attached:
                work.root = await disks.grow(local.id, size)
            work.layers[ROOT] = await pools.list_layers(local.spec, local.id)
        return ""

    async def _network_step(self, work: Work) -> str:
        local = work.local
        plug = self._network.prepare_migration if local.spec.role == "target" else self._network.plug
        work.links = await plug(local) if local.spec.nics else []
        return "" if local.spec.nics else "no network"

    async def _seed(self, work: Work) -> None:
        work.seed = None
        seed = kind_of(work.local.spec).build_seed(work.local, work)
        if seed is None:
            return
        self._seeds.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, data = self._seed_path(work.local, seed[0]), seed[1]
        if not path.exists() or path.read_bytes() != data:
            await asyncio.to_thread(write_durably, path, data)
        work.seed = str(path)

    async def _start(self, work: Work) -> str:
        plan = self._plan_guest(work)
        async with self._node.heavy:
            facts = await self.runtimes.of(work.local).start(plan)
        return facts.message or "" if facts.reason == BEGUN_AFRESH else ""

    async def _adjust(self, work: Work) -> None:
        runtime = self.runtimes.of(work.local)
        if not isinstance(runtime, CanAdjust):
            raise InvalidInput(
                f"{work.local.what}: runtime {runtime.name} can't change a running workload", reason="unsupported"
            )
        await runtime.adjust(self._plan_guest(work))

    def wake_network(self) -> None:
        """Open or close ports soon, as leases say."""
        self._network.wake()

    async def _hold(self, local: LocalAllocation, held: bool) -> None:
        if not held:
            await self._network.open(local)
        if (driver := self.runtimes.holding.get(self.runtimes.find(local))) is not None:
            await driver.hold(local.id, held)

    async def _stop(self, local: LocalAllocation) -> None:
        await self.runtimes.of(local).stop(local.id, grace_seconds=local.spec.grace_seconds)

    async def _suspend(self, work: Work) -> None:
        runtime = self.runtimes.of(work.local)
        if not isinstance(runtime, CanSuspend):
            raise InvalidInput(
                f"{work.local.what}: runtime {runtime.name} can't suspend workloads", reason="unsupported"
            )
        await runtime.suspend(work.local.id)

    async def _remove(self, work: Work) -> None:
        if (runtime := self.runtimes.find(work.local)) is not None:  # else it was never here
            await runtime.remove(work.local.id)

    async def _remove_disks(self, work: Work) -> None:
        local, pools = work.local, self._node.pools
        await self.migrations.drop_relocation(local.uid)
        if other := await pools.find_elsewhere(local.spec, local.id, ROOT):
            await (await pools.find(other)).remove(local.id)  # a restored server doesn't know that it was relocated
        await (await pools.of(local.spec, ROOT)).remove(local.id)
        if (relocation := work.relocation) is not None:  # the disk may be in two pools
            id_ = local.id if relocation.disk == ROOT else relocation.disk
            if relocation.state == "copying":
                await (await pools.find(relocation.pool, relocation.pool_id)).remove(id_)
            elif relocation.state == "there":
                await (await pools.find(relocation.old_pool, relocation.old_pool_id)).remove(id_)
        for form in SEEDS:
            self._seed_path(local, form).unlink(missing_ok=True)

    async def _check_volumes(self, work: Work) -> None:
        local = work.local
        for volume in local.spec.volumes:
            if volume.uid in shared_with_source(local):
                continue
            if await self._node.pools.inspect(local.spec, volume.uid, volume.uid) is not None:
                raise DriverFailed(
                    f"{local.what}: volume {volume.name} already has data on this node that no object accounts for",
                    hint="rename that file, or migrate the workload to another node",
                    details={"step": "disk"},
                )

    async def _relocate(self, work: Work) -> None:
        assert work.relocation is not None
        await self.migrations.relocate(work.state, work.local, work.relocation, work)

    async def _give_up(self, work: Work) -> str:
        return "" if work.migration is None or await self.migrations.give_up(work.local, work.migration) else RUNS

    async def _remove_volumes(self, work: Work) -> None:
        migration, local = work.local.spec.migration, work.local
        shared = {
            *(work.migration.shared if work.migration is not None else ()),
            *(migration.shared if migration else ()),
        }
        for volume in local.spec.volumes:
            if volume.uid not in shared:  # both nodes use the same data of a shared one
                await (await self._node.pools.of(local.spec, volume.uid)).remove(volume.uid)
            self._node.volumes.uids.discard(volume.uid)

    async def _forget(self, work: Work) -> None:
        self._node.container_images.drop(work.local.uid)
        self._node.secrets.drop(work.local.uid)  # the worker does the rest

    def _plan_guest(self, work: Work) -> object:
        work.in_namespace = self.runtimes.in_namespace(work.local)
        return kind_of(work.local.spec).plan_guest(work.local, work)

    def _seed_path(self, local: LocalAllocation, form: str) -> Path:
        return self._seeds / f"{local.id}.{form}"


async def _share_root(local: LocalAllocation, disks: VolumeDriver) -> VolumeFacts:
    migration = local.spec.migration
    if migration is None or not isinstance(disks, HasPool):
        raise DriverFailed(f"{local.what}: its root disk can't be shared on this node", details={"step": "disk"})
    return await disks.share(short_id(migration.peer_allocation), local.id)


_STEPS: dict[Step, Callable[[StepExecutor, Work], Awaitable[str | None]]] = {
    Step.DISK: StepExecutor._disk,
    Step.VOLUMES: lambda self, work: kind_of(work.local.spec).prepare_volumes(self._node, work.local, work),
    Step.NETWORK: StepExecutor._network_step,
    Step.SEED: StepExecutor._seed,
    Step.START: StepExecutor._start,
    Step.ADJUST: StepExecutor._adjust,
    Step.TIDY: lambda self, work: self._network.unplug(work.local, work.leftover),
    Step.HOLD: lambda self, work: self._hold(work.local, True),
    Step.GO: lambda self, work: self._hold(work.local, False),
    Step.STOP: lambda self, work: self._stop(work.local),
    Step.END: lambda self, work: self._stop(work.local),
    Step.SUSPEND: StepExecutor._suspend,
    Step.SAVE: StepExecutor._suspend,
    Step.REMOVE: StepExecutor._remove,
    Step.UNPLUG: lambda self, work: self._network.unplug(work.local),
    Step.REMOVE_DISKS: StepExecutor._remove_disks,
    Step.FORGET: StepExecutor._forget,
    Step.CHECK_VOLUMES: StepExecutor._check_volumes,
    Step.OPEN: lambda self, work: self.migrations.open(work.state, work.local, work.begun_migration, work),
    Step.SEND: lambda self, work: self.migrations.send(work.state, work.local, work.begun_migration),
    Step.GIVE_UP: StepExecutor._give_up,
    Step.LEAVE: lambda self, work: self.migrations.leave(work.local, work.begun_migration),
    Step.CANCEL: lambda self, work: self.migrations.cancel(work.local, work.begun_migration),
    Step.SETTLE: lambda self, work: self.migrations.settle(work.local, work.begun_migration),
    Step.RELOCATE: StepExecutor._relocate,
    Step.REMOVE_VOLUMES: StepExecutor._remove_volumes,
}
