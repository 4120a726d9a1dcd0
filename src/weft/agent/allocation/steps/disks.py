"""Steps for disks: root disk, volumes and seed, and their removal."""

from __future__ import annotations

import asyncio
from pathlib import Path

from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.record import StepParts, StepRecord, Work
from weft.agent.snapshot.transfer import release_snapshots
from weft.agent.state.allocation import LocalAllocation, MigrationState
from weft.agent.volume.origin import begins_from_memory, clone_missing
from weft.agent.workload.kind import Show, shared_with_source
from weft.agent.workload.kinds import kind_of
from weft.agent.workload.shape import ROOT_SERIAL
from weft.contracts.driver.layers import HasLayers
from weft.contracts.driver.volume import HasPool, KeepsDisks, VolumeDriver, VolumeFacts
from weft.contracts.durable_file import write_durably
from weft.kinds.allocation import ROOT
from weft.kinds.volume import derive_kept_uid
from weft.objects.errors import DriverFailed, NotFound
from weft.objects.identity import short_id

SEEDS = ("tar", "nocloud", "machine")


async def _make_root(parts: StepParts, work: Work, show: Show) -> str:
    image, local, pools = work.image, work.local, parts.node.pools
    if image is None:
        raise DriverFailed(f"{local.what}: its image is not on this node", details={"step": "disk"})
    disks, size = await pools.of(local.spec, ROOT), local.spec.resources.disk
    async with parts.node.heavy:
        if ROOT in shared_with_source(local):
            work.root = await _share_root(local, disks)
            work.layers[ROOT] = await pools.list_layers(local.spec, local.id)
            return "shared"
        await _go_on(local, disks)
        await pools.refuse_elsewhere(local.spec, local.id, ROOT, f"{local.what}: its root disk")
        if (cloned := await clone_missing(pools, local, work.origin, ROOT)) is not None:
            work.root = cloned
        elif work.template is not None and isinstance(disks, HasLayers):  # it grows once the machine runs
            work.root = await disks.layers.clone(local.id, work.template.snapshot, ROOT)
        else:
            work.root = await disks.ensure(local.id, size_bytes=size, base=image.disk, base_format=image.disk_format)
        grows = ROOT_SERIAL not in work.attached and work.template is None and not begins_from_memory(work.origin)
        if work.root.size_bytes < size and grows:
            work.root = await disks.grow(local.id, size)
        work.layers[ROOT] = await pools.list_layers(local.spec, local.id)
    return ""


async def _go_on(local: LocalAllocation, disks: VolumeDriver) -> None:
    """Take the root disk of the newest lost allocation that has one; it keeps its former name, too, until that is released."""
    former = [short_id(uid) for uid in local.spec.continues] if local.spec.migration is None else []
    if not isinstance(disks, HasPool) or not former or await disks.inspect(local.id) is not None:
        return
    for id_ in former:
        if await disks.inspect(id_) is not None:
            await disks.share(id_, local.id)
            return


async def _share_root(local: LocalAllocation, disks: VolumeDriver) -> VolumeFacts:
    migration = local.spec.migration
    if migration is None or not isinstance(disks, HasPool):
        raise DriverFailed(f"{local.what}: its root disk can't be shared on this node", details={"step": "disk"})
    return await disks.share(short_id(migration.peer_allocation), local.id)


async def _make_volumes(parts: StepParts, work: Work, show: Show) -> None:
    await kind_of(work.local.spec).prepare_volumes(parts.node, work.local, work)


async def _make_seed(parts: StepParts, work: Work, show: Show) -> None:
    work.seed = None
    seed = kind_of(work.local.spec).build_seed(work.local, work)
    if seed is None:
        return
    parts.seeds.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, data = _seed_path(parts, work.local, seed[0]), seed[1]
    if not path.exists() or path.read_bytes() != data:
        await asyncio.to_thread(write_durably, path, data)
    work.seed = str(path)


async def _remove_disks(parts: StepParts, work: Work, show: Show) -> None:
    local, pools = work.local, parts.node.pools
    await parts.migrations.drop_relocation(local.uid)
    if other := await pools.find_elsewhere(local.spec, local.id, ROOT):
        await (await pools.find(other)).remove(local.id)  # a restored server doesn't know that it was relocated
    if _has_left(work.migration, ROOT):
        await release_snapshots(pools, local, ROOT)
    await (await pools.of(local.spec, ROOT)).remove(local.id)
    if (relocation := work.relocation) is not None:  # the disk may be in two pools
        id_ = local.id if relocation.disk == ROOT else relocation.disk
        if relocation.state == "copying":
            await (await pools.find(relocation.pool, relocation.pool_id)).remove(id_)
        elif relocation.state == "there":
            await (await pools.find(relocation.old_pool, relocation.old_pool_id)).remove(id_)
    for form in SEEDS:
        _seed_path(parts, local, form).unlink(missing_ok=True)


async def _keep_disk(parts: StepParts, work: Work, show: Show) -> None:
    local, node = work.local, parts.node
    await parts.migrations.drop_relocation(local.uid)
    disks = await node.pools.of(local.spec, ROOT)
    if await disks.inspect(local.id) is None:
        return  # it was never made, or is a volume already
    if not isinstance(disks, KeepsDisks):
        raise DriverFailed(f"{local.what}: its root disk can't be kept on this node", details={"step": "disk"})
    found = node.images.find(local.spec.image.sha256) if local.spec.image is not None else None
    if found is None:  # what it stands on isn't known
        raise NotFound(f"{local.what}: its image is not on this node", details={"step": "disk"})
    await disks.keep(local.id, local.uid, base=found.disk, base_format=found.disk_format)
    node.volumes.uids.add(local.uid)


async def _check_volumes(parts: StepParts, work: Work, show: Show) -> None:
    local = work.local
    for volume in local.spec.volumes:
        if volume.uid in shared_with_source(local):
            continue
        if await parts.node.pools.inspect(local.spec, volume.uid, volume.uid) is not None:
            raise DriverFailed(
                f"{local.what}: volume {volume.name} already has data on this node that no object accounts for",
                hint="rename that file, or migrate the workload to another node",
                details={"step": "disk"},
            )


async def _remove_volumes(parts: StepParts, work: Work, show: Show) -> None:
    migration, local, node = work.local.spec.migration, work.local, parts.node
    shared = {
        *(work.migration.shared if work.migration is not None else ()),
        *(migration.shared if migration else ()),
    }
    for volume in local.spec.volumes:
        if volume.uid not in shared:  # both nodes use the same data of a shared one
            if _has_left(work.migration, volume.uid):
                await release_snapshots(node.pools, local, volume.uid)
            await (await node.pools.of(local.spec, volume.uid)).remove(volume.uid)
        node.volumes.uids.discard(volume.uid)


async def _keep_volumes(parts: StepParts, work: Work, show: Show) -> None:
    """Each gets a uid of its own: that of the volume is for the data that its workload goes on with."""
    local, node = work.local, parts.node
    for volume in local.spec.volumes:
        disks = await node.pools.of(local.spec, volume.uid)
        if await disks.inspect(volume.uid) is not None:
            if not isinstance(disks, KeepsDisks):
                what = f"{local.what}: volume {volume.name} can't be kept on this node"
                raise DriverFailed(what, details={"step": "disk"})
            kept = derive_kept_uid(local.uid, volume.uid)
            await disks.keep(volume.uid, kept)
            node.volumes.uids.add(kept)
            await disks.remove(volume.uid)
        node.volumes.uids.discard(volume.uid)


def _has_left(migration: MigrationState | None, disk: str) -> bool:
    """Whether the disk is on another node for good, with its snapshots: between clusters they don't go along."""
    if migration is None or migration.between_clusters:
        return False
    return migration.role == "source" and migration.taken and disk not in migration.shared


def _seed_path(parts: StepParts, local: LocalAllocation, form: str) -> Path:
    return parts.seeds / f"{local.id}.{form}"


DISK_STEPS = (
    StepRecord(step=StepName.DISK, perform=_make_root, durable=True, makes=True, stage="disk"),
    StepRecord(step=StepName.VOLUMES, perform=_make_volumes, durable=True, makes=True, stage="disk", ends_stage=True),
    StepRecord(step=StepName.SEED, perform=_make_seed, durable=True, makes=True, stage="disk", ends_stage=True),
    StepRecord(step=StepName.KEEP_DISK, perform=_keep_disk),
    StepRecord(step=StepName.REMOVE_DISKS, perform=_remove_disks),
    StepRecord(step=StepName.CHECK_VOLUMES, perform=_check_volumes),
    StepRecord(step=StepName.KEEP_VOLUMES, perform=_keep_volumes),
    StepRecord(step=StepName.REMOVE_VOLUMES, perform=_remove_volumes),
)
