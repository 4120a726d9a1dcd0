"""Find the orphans of a node that are certainly superseded, so that the node may end and remove them.

Reads the node's own copies of their allocations; workloads, allocations, volumes, and the record of allocations that were
deleted when the node was given up. Called with each report of the node.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from msgspec.structs import replace

from weft.api.auth.authorise import GivenUp, given_up_key
from weft.api.context import ApiContext
from weft.contracts.store import Absent, PreconditionFailed, Put, epoch_of
from weft.kinds.allocation import (
    LOCAL,
    AllocatedVolume,
    AllocationSpec,
    AllocationStatus,
    EndedBy,
    allocation_name,
    is_lost,
)
from weft.kinds.node import KEEPS_DISKS, KEEPS_VOLUMES, NodeReport
from weft.kinds.parts.node.orphan import OrphanCopy, read_copies
from weft.kinds.parts.snapshot.copies import has_root_disk
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.project import PROJECT
from weft.kinds.volume import (
    VOLUME,
    VolumeMarks,
    VolumeOrphan,
    VolumeSpec,
    VolumeStatus,
    derive_kept_uid,
    describe_disk,
    name_orphan,
)
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope
from weft.objects.identity import object_key


async def find_superseded(context: ApiContext, node: Envelope) -> tuple[list[str], list[str]]:
    """Uids of the superseded orphans, and of their stale volumes.

    An orphan is superseded if the other end of its migration has replaced it; if its workload had a later incarnation, or was
    deleted, after the node was given up or the allocation was lost; or if no guest can run there any more and the workload has a
    later incarnation. A volume is stale if another node reports its data: its home, or the source of a migration whose target
    never ran; or if its workload went on elsewhere from an earlier state: then its node keeps what it has under another uid."""
    report = decode_part(node.report, NodeReport)
    copies = read_copies(report)
    if not copies:
        return [], []
    superseded: list[str] = []
    stale: set[str] = set()
    entry = await context.store.get(given_up_key(node.uid))
    given_up = set(msgspec.json.decode(entry.value, type=GivenUp).places) if entry is not None else set()
    for orphan in copies:
        lost = await _read_lost(context, node, orphan)
        if not await _is_superseded(context, orphan, given_up=orphan.uid in given_up or lost is not None):
            continue
        if lost is not None and await _awaits_home(context, node, orphan):
            continue
        superseded.append(orphan.uid)
        if orphan.standing != "here":
            stale |= await _find_stale(context, node, orphan)
        elif KEEPS_VOLUMES in report.capabilities:
            stale |= {volume.uid for volume in await _find_left(context, node, orphan)}
    return superseded, sorted(stale)


async def keep_disks(context: ApiContext, node: Envelope, superseded: Collection[str]) -> None:
    """Make a Volume of each disk that the node keeps of these orphans, where people find it. The node gives the disk that one's
    uid: of a root disk it is that of the former allocation."""
    report = decode_part(node.report, NodeReport)
    if not superseded or KEEPS_DISKS not in report.capabilities:
        return
    entry = await context.store.get(given_up_key(node.uid))
    lost_at = msgspec.json.decode(entry.value, type=GivenUp).at if entry is not None else 0.0
    for orphan in read_copies(report):
        spec, workload = orphan.spec, orphan.spec.workload
        own = spec.role == "active" or (is_lost(spec) and spec.pool == LOCAL)  # with a shared one its workload went on
        stays = own and orphan.standing == "here" and has_root_disk(msgspec.to_builtins(spec))
        if not stays or orphan.uid not in superseded:
            continue
        if await context.store.get(object_key(PROJECT.name, None, workload.project or "")) is None:
            continue
        lost = await _read_lost(context, node, orphan)
        of, at = f"{workload.kind}/{workload.name}", lost.at if lost is not None else lost_at
        about = VolumeOrphan(of=of, workload_uid=workload.uid, node=node.name, since=context.clock.now(), lost_at=at)
        await _make_volume(context, orphan, about, orphan.uid, VolumeSpec(size=spec.resources.disk, pool=spec.pool))
        for volume in await _find_left(context, node, orphan) if KEEPS_VOLUMES in report.capabilities else ():
            uid, wanted = derive_kept_uid(orphan.uid, volume.uid), VolumeSpec(size=volume.size, pool=volume.pool)
            await _make_volume(context, orphan, replace(about, volume=volume.name), uid, wanted)


async def _make_volume(
    context: ApiContext, orphan: OrphanCopy, about: VolumeOrphan, uid: str, wanted: VolumeSpec
) -> None:
    workload, name = orphan.spec.workload, name_orphan(orphan.spec.workload.name, orphan.uid, about.volume)
    key = object_key(VOLUME.name, workload.project, name)
    volume = VOLUME.make(name, wanted, about.since, uid=uid, project=workload.project, marks=VolumeMarks(orphan=about))
    try:
        await context.store.commit([Put(key, encode_envelope(volume))], [Absent(key)])
    except PreconditionFailed:
        return  # an earlier report has made it
    said = f"node {about.node} is back and keeps {describe_disk(about)} as it was there: weft volume reclaim {name}"
    for ref in (volume.ref, workload):
        context.add_event(ref, "DiskKept", said)


async def _awaits_home(context: ApiContext, node: Envelope, orphan: OrphanCopy) -> bool:
    """Whether its workload has gone on elsewhere with a volume whose home is still this node: in a moment it isn't."""
    of = orphan.spec.workload
    workload = await _read(context, object_key(of.kind, of.project, of.name))
    named = msgspec.json.decode(workload.spec).get("volumes", []) if workload is not None else []
    homes = [await _read_home(context, orphan, volume) for volume in orphan.spec.volumes if volume.name in named]
    return node.uid in homes


async def _find_left(context: ApiContext, node: Envelope, orphan: OrphanCopy) -> list[AllocatedVolume]:
    """The volumes of an orphan whose guest was here, which have another home by now; all or none, so that its node can tell."""
    found = [volume for volume in orphan.spec.volumes if volume.pool == LOCAL and not volume.encrypted]
    homes = [await _read_home(context, orphan, volume) for volume in found]
    return found if len(found) == len(orphan.spec.volumes) and not {None, node.uid} & {*homes} else []


async def _read_home(context: ApiContext, orphan: OrphanCopy, volume: AllocatedVolume) -> str | None:
    """Uid of the node that has the volume's data as its status says; None: none, or it is gone."""
    found = await _read(context, object_key("volume", orphan.spec.workload.project, volume.name))
    return decode_part(found.status, VolumeStatus).node_uid if found is not None and found.uid == volume.uid else None


async def _read_lost(context: ApiContext, node: Envelope, orphan: OrphanCopy) -> EndedBy | None:
    """Evidence that an orphan had ended, if the store has its allocation as lost."""
    found = await _read(context, object_key("allocation", None, allocation_name(node.uid, orphan.uid)))
    is_so = found is not None and found.uid == orphan.uid and is_lost(decode_part(found.spec, AllocationSpec))
    return decode_part(found.status, AllocationStatus).ended_by if found is not None and is_so else None


async def _is_superseded(context: ApiContext, orphan: OrphanCopy, *, given_up: bool) -> bool:
    workload, migration = orphan.spec.workload, orphan.spec.migration
    found = await _read(context, object_key(workload.kind, workload.project, workload.name))
    if found is not None and found.uid == workload.uid:
        # A later incarnation alone ends no guest: in a lost history other allocations had the same numbers.
        status = decode_part(found.status, WorkloadStatus)
        older = status.active_incarnation > orphan.spec.incarnation
        if older and orphan.spec.role == "lost" and orphan.spec.pool != LOCAL and status.started_at is None:
            return False  # the later one may have yet to take over its disk
        if older and (given_up or orphan.standing in ("left", "abandoned")):
            return True
    elif given_up:
        return True  # the store has the allocation's deletion, so it had the workload: people deleted that
    if migration is None:
        return False
    peer = await _read(
        context, object_key("allocation", None, allocation_name(migration.peer_uid, migration.peer_allocation))
    )
    if peer is None:
        return orphan.standing == "abandoned" and await _is_gone(
            context, migration.peer, migration.peer_uid, migration.peer_allocation
        )
    spec = decode_part(peer.spec, AllocationSpec)
    if orphan.spec.role == "target":
        return migration.key in spec.back_from
    return spec.role == "active" and spec.incarnation > orphan.spec.incarnation


async def _is_gone(context: ApiContext, node: str, node_uid: str, allocation: str) -> bool:
    """Whether a node, which has reported in this history, has no guest of an allocation that isn't stored: then nobody waits for
    that target's report."""
    page = await context.store.list(object_key("node", None, node), limit=1)
    found = [decode_envelope(entry.value) for entry in page.entries if entry.key == object_key("node", None, node)]
    if not found or found[0].uid != node_uid:
        return False
    report = decode_part(found[0].report, NodeReport)
    return report.epoch == epoch_of(page.cursor) and all(allocation not in text for text in report.orphans)


async def _find_stale(context: ApiContext, node: Envelope, orphan: OrphanCopy) -> set[str]:
    stale = set()
    for volume in orphan.spec.volumes:
        found = await _read(context, object_key("volume", orphan.spec.workload.project, volume.name))
        if found is None or found.uid != volume.uid:
            continue
        status, migration = decode_part(found.status, VolumeStatus), orphan.spec.migration
        shared = volume.pool != LOCAL or (volume.pool_id and volume.pool_id == status.pool_id)
        if shared or status.node_uid == node.uid:
            continue
        if await _has_data(context, status.node, status.node_uid, volume.uid):
            stale.add(volume.uid)
        elif orphan.standing == "abandoned" and migration is not None:
            # Made for a target that never ran: the data is at the source, which an older store may not know as its home.
            if await _has_data(context, migration.peer, migration.peer_uid, volume.uid):
                stale.add(volume.uid)
    return stale


async def _has_data(context: ApiContext, node: str | None, node_uid: str | None, volume: str) -> bool:
    """Whether that node, if there is one, reports the data of the volume of this uid."""
    found = await _read(context, object_key("node", None, node)) if node is not None else None
    return found is not None and found.uid == node_uid and volume in decode_part(found.report, NodeReport).volumes


async def _read(context: ApiContext, key: str) -> Envelope | None:
    entry = await context.store.get(key)
    return None if entry is None else decode_envelope(entry.value)
