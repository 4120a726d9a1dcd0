"""Source of a guest that goes on elsewhere: its image, its own disks, or a point of them on another node, or in a backup. Pure.

The controller that frees the guest, and all that people read of it, go by ``find_source``.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from weft.controllers.backup.facts import read_repository
from weft.controllers.backup.model import explain_waiting
from weft.controllers.replication.target import find_target
from weft.informer.commit import Draft
from weft.informer.view import Item, View
from weft.informer.workloads import name_of, record_of, spec_of
from weft.kinds.allocation import LOCAL, ROOT, AllocationSpec
from weft.kinds.backup import BACKUPS_BY_SUBJECT, BackupSpec, BackupStatus
from weft.kinds.fields.backup_verification import DAMAGED, FAILED
from weft.kinds.node import NODES_BY_POOL, NODES_BY_UID, NodeStatus
from weft.kinds.parts.workload import WorkloadPoint
from weft.kinds.replica import ReplicaMarks, ReplicaStatus
from weft.kinds.replication import REPLICATIONS_BY_SUBJECT, is_local
from weft.kinds.snapshot import SNAPSHOT, SNAPSHOTS_BY_UID, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.volume import VolumeStatus
from weft.objects.identity import cut_name, new_uid, object_key
from weft.objects.quantity import format_time


class LossSource(msgspec.Struct, frozen=True):
    """One that there is. Without a point and a backup nothing is lost: it has its own disks, or none."""

    said: str = ""  # for people, like " from backup/x of TIME"; "": nothing is lost
    point: WorkloadPoint | None = None  # a snapshot that lies on another node
    replica: Item | None = None  # of which that is a point: none of the lost node's may come after it
    read: Item | None = None  # the object that this is known of, unchanged until the guest is freed
    backup: Item | None = None  # it is fetched as such a snapshot
    passed_over: tuple[str, ...] = ()  # names of newer backups that are damaged


def find_source(view: View, node: Item, place: Item, workload: Item) -> LossSource | str:
    """The source of a guest of the lost ``node``; or what keeps it from going on elsewhere, for people."""
    spec = place.spec(AllocationSpec)
    bar = _find_disk_bar(view, node, spec, workload)
    if not bar:
        return LossSource()
    copy = find_copy(view, node, spec, workload)
    if isinstance(copy, LossSource):
        return copy
    bar, found = copy or bar, find_point(view, workload)
    if isinstance(found, LossSource) and not _is_local(spec):
        found = "what it has in other pools would be of another time"
    return found if isinstance(found, LossSource) else f"{bar}{', and ' if found else ''}{found}"


def _is_local(spec: AllocationSpec) -> bool:
    return spec.pool == LOCAL and all(volume.pool == LOCAL for volume in spec.volumes)


def find_point(view: View, workload: Item, passed_over: Collection[str] = ()) -> LossSource | str:
    """The newest point of all disks of a workload that it may go on from, if they are in its lost node's own pool; or why there is
    none, as the end of a sentence. ``passed_over``: names of backups that are damaged."""
    if spec_of(workload).on_node_loss != "restart-from-backup":
        return ""
    return _find_backup(view, workload, passed_over)


def make_point(draft: Draft, workload: Item, source: LossSource, now: float) -> WorkloadPoint | None:
    """The mark of a workload that goes on from ``source``, with the snapshot that a backup is fetched as."""
    backup = source.backup
    if backup is None:
        return source.point
    of, status, uid = workload.envelope, backup.status(BackupStatus), new_uid()
    name, about = backup.envelope.name, SnapshotSpec(of=name_of(workload))
    marks = SnapshotMarks(automatic="loss", backup=name, image=status.image)
    made = cut_name(of.name, f"-back-{uid[:8]}")
    draft.make(SNAPSHOT.make(made, about, now, uid=uid, project=of.project, creator=of.creator, marks=marks))
    return WorkloadPoint(
        snapshot=made,
        snapshot_uid=uid,
        taken_at=status.taken_at or 0.0,
        backup=name,
        passed_over=list(source.passed_over),
        lost_at=now,
    )


def find_copy(view: View, node: Item, place: AllocationSpec, workload: Item) -> LossSource | str | None:
    """The newest point of a guest's second copy; or why that is of no use; None: it has none."""
    left = next((one for one in view.find(REPLICATIONS_BY_SUBJECT, workload.key) if is_local(one)), None)
    replica = find_target(view, left) if left is not None else None
    if replica is None:
        return None
    status, generation = replica.status(ReplicaStatus), replica.marks(ReplicaMarks).generation
    point = next((one for one in reversed(status.points) if one.generation == generation), None)
    if point is None:
        return f"its second copy has no point yet{f': {status.message}' if status.message else ''}"
    snapshot = next(iter(view.find(SNAPSHOTS_BY_UID, point.snapshot_uid)), None)
    taken = snapshot.status(SnapshotStatus) if snapshot is not None and not snapshot.deleting else SnapshotStatus()
    homes = [one for one in view.find(NODES_BY_UID, taken.node_uid or "") if one.uid != node.uid]
    if taken.phase != "Ready" or not any(one.status(NodeStatus).phase == "Ready" for one in homes):
        return f"its second copy is on node {taken.node or status.node}, which isn't ready"
    disks = {disk.key for disk in taken.disks.values()}
    if missing := next((one.name for one in place.volumes if one.uid not in disks), ""):
        return f"its second copy has no point with volume {missing} yet"
    at = point.received_at - point.age_seconds  # by this cluster's clock, and no later than it was
    said = f" from its second copy on node {taken.node}, of {format_time(at, seconds=True)}"
    began = WorkloadPoint(snapshot=point.snapshot, snapshot_uid=point.snapshot_uid, taken_at=at)
    return LossSource(said, began, replica)


def _find_backup(view: View, workload: Item, passed_over: Collection[str]) -> LossSource | str:
    """The newest good backup with all its disks whose repository can be reached."""
    found = [item for item in view.find(BACKUPS_BY_SUBJECT, workload.key) if item.envelope.name not in passed_over]
    good = sorted((item for item in found if _is_good(item, workload.uid)), key=_taken_at, reverse=True)
    needed = {ROOT, *_list_used_volumes(view, workload)}
    whole = [one for one in good if needed <= {disk.key for disk in one.status(BackupStatus).disks.values()}]
    if not whole:
        return "no good backup has all its disks" if good else "it has no good backup"
    why = ""
    for one in whole:
        to, name = one.spec(BackupSpec).to, one.envelope.name
        waits = explain_waiting(to, read_repository(view, to))
        if waits is None:
            said = f" from backup/{name} of {format_time(_taken_at(one), seconds=True)}"
            return LossSource(said, read=one, backup=one, passed_over=tuple(passed_over))
        why = why or f"backup/{name} can't be had: {waits[1]}"
    return why


def _is_good(backup: Item, workload_uid: str) -> bool:
    status = backup.status(BackupStatus)
    is_of_it = status.workload_uid == workload_uid and not backup.deleting
    return is_of_it and status.phase == "Ready" and status.state not in (DAMAGED, FAILED)


def _taken_at(backup: Item) -> float:
    return backup.status(BackupStatus).taken_at or 0.0


def _list_used_volumes(view: View, workload: Item) -> list[str]:
    """The uids of its volumes that have data."""
    names = record_of(workload).volumes(spec_of(workload))
    found = (view.get(object_key("volume", workload.envelope.project, name)) for name in names)
    return [item.uid for item in found if item is not None and item.status(VolumeStatus).node_uid is not None]


def _find_disk_bar(view: View, node: Item, spec: AllocationSpec, workload: Item) -> str:
    """The first of its disks that no other node has; empty if all can be had elsewhere."""
    needs = record_of(workload).needs(spec_of(workload))
    disks = {f"its volume {volume.name}": (volume.pool, volume.pool_id) for volume in spec.volumes}
    if needs.machine:
        disks["its root disk"] = spec.pool, spec.pool_id
        if needs.pool != spec.pool:
            return f"its root disk is in {spec.pool}, and its spec says {needs.pool}"
    for disk, (pool, storage) in disks.items():
        if pool == LOCAL or not storage:
            return f"{disk} is in {pool}, on that node"
        others = (one for one in view.find(NODES_BY_POOL, storage) if one.uid != node.uid)
        if not any(one.status(NodeStatus).phase == "Ready" for one in others):
            return f"{disk} is in {pool}, which no other node that is ready has"
    return ""
