"""The steps that take the disks of a VM back to a snapshot, in place, once its guest has ended.

All of its disks go back, or none: the checkpoint names the restore before the first one does, and until the last one has, nothing
else is done with them. What stood there is kept first, if that is asked for.
"""

from __future__ import annotations

from msgspec.structs import replace

from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.record import Moment, StepParts, StepRecord, Work
from weft.agent.state.allocation import Checkpoint, LocalAllocation
from weft.agent.state.allocation_state import keep_restored
from weft.agent.state.snapshots import find_restore, name_layer
from weft.agent.volume.origin import find_kept, find_memory
from weft.agent.workload.kind import Show
from weft.contracts.driver.layers import HasLayers, KeptDisk, KeptSnapshot, Layers
from weft.kinds.allocation import ROOT, list_disks
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, AllocatedSnapshot, SnapshotReport
from weft.objects.errors import DriverFailed
from weft.objects.identity import short_id


async def _check(parts: StepParts, work: Work, show: Show) -> None:
    """Raise before the guest is ended, if the restore can't succeed."""
    local, pools = work.local, parts.node.pools
    origin = find_restore(local.spec, work.state.checkpoint)
    if origin is None:
        return
    for disk in origin.disks:
        await find_kept(pools, local, origin, disk)
    if origin.memory:
        await find_memory(pools, local, origin)


def _before(checkpoint: Checkpoint, moment: Moment) -> Checkpoint:
    return replace(checkpoint, restoring=find_restore(moment.spec, checkpoint))


async def _restore(parts: StepParts, work: Work, show: Show) -> None:
    origin = work.state.checkpoint.restoring
    if origin is None:
        return
    restorer = Restorer(parts, work.local, origin)
    await restorer.find_disks()
    if origin.keeps is not None:
        await restorer.keep(origin.keeps)
    await restorer.replace()
    report = await restorer.report(origin.keeps) if origin.keeps is not None else None
    await keep_restored(work.state, origin, report)
    parts.snapshots.wake()


RESTORE_STEPS = (
    StepRecord(step=StepName.CHECK_ORIGIN, perform=_check),
    StepRecord(step=StepName.RESTORE, perform=_restore, before=_before, durable=True),
)


class Restorer:
    """Restores the disks of one VM. Every method may be repeated."""

    def __init__(self, parts: StepParts, local: LocalAllocation, origin: AllocatedOrigin) -> None:
        self._parts, self._local, self._origin = parts, local, origin
        self._layers: dict[str, Layers] = {}  # of each disk's pool
        self._present: list[str] = []  # disks that are there

    async def find_disks(self) -> None:
        """Raises DriverFailed for a disk that it no longer has; that is none of its restore any more."""
        for disk in self._origin.disks:
            if disk not in list_disks(self._local.spec):
                continue  # detached since
            driver = await self._parts.node.pools.of(self._local.spec, disk)
            if not isinstance(driver, HasLayers):
                raise DriverFailed(f"{self._local.what}: its storage pool can't keep snapshots", reason="unsupported")
            self._layers[disk] = driver.layers
            if await driver.inspect(self._id(disk)) is not None:
                self._present.append(disk)

    async def keep(self, keeps: AllocatedSnapshot) -> None:
        """Keep what stands there, in all of its pools, before the first disk goes back. Raises WeftError."""
        for layers, disks in self._by_pool():
            if any(kept.uid == keeps.uid for kept in await layers.list_kept()):
                continue  # as it stood before
            kept = {disk: await self._describe(disk) for disk in disks}
            workload = self._local.spec.workload.uid
            snapshot = KeptSnapshot(short_id(keeps.uid), keeps.uid, kept, workload=workload)
            await layers.keep_present(snapshot, {self._id(disk): self._name_layer(disk) for disk in disks})

    async def replace(self) -> None:
        """Raises WeftError; repeated, it goes on where it was."""
        snapshot = short_id(self._origin.snapshot)
        for disk, layers in self._layers.items():
            if disk in self._present:
                await layers.replace(self._id(disk), snapshot, self._origin.disks[disk], self._name_layer(disk))
            else:
                await layers.clone(self._id(disk), snapshot, self._origin.disks[disk])

    async def report(self, keeps: AllocatedSnapshot) -> SnapshotReport:
        """The report of the snapshot that keeps what stood there."""
        found = [one for layers, _ in self._by_pool() for one in await layers.list_kept() if one.uid == keeps.uid]
        spec = self._local.spec
        return SnapshotReport(
            uid=keeps.uid,
            phase="ready" if found else "failed",
            consistency="stopped",
            disks={disk: facts.size_bytes for one in found for disk, facts in one.disks.items()},
            size=sum(one.used_bytes for one in found),
            taken_at=self._parts.node.clock.now(),
            pool=spec.pool,
            pool_id=spec.pool_id,
            reason="" if found else "noDisk",
            message="" if found else f"{self._local.what} had no disk yet",
        )

    async def _describe(self, disk: str) -> KeptDisk:
        id_, names = self._id(disk), {volume.uid: volume.name for volume in self._local.spec.volumes}
        facts = await self._parts.node.pools.inspect(self._local.spec, id_, disk)
        assert facts is not None  # see find_disks
        chain = [layer.id for layer in await self._layers[disk].list_layers(id_)]
        return KeptDisk((*chain, self._name_layer(disk)), facts.size_bytes, names.get(disk, ""))

    def _by_pool(self) -> list[tuple[Layers, list[str]]]:
        found: dict[int, tuple[Layers, list[str]]] = {}
        for disk in self._present:
            found.setdefault(id(self._layers[disk]), (self._layers[disk], []))[1].append(disk)
        return list(found.values())

    def _name_layer(self, disk: str) -> str:
        """The layer that what stands there becomes: of the snapshot that keeps it, or of this very restore."""
        keeps, origin = self._origin.keeps, self._origin
        return name_layer(keeps.uid if keeps is not None else f"{self._local.uid}/{origin.generation}", disk)

    def _id(self, disk: str) -> str:
        return self._local.id if disk == ROOT else disk
