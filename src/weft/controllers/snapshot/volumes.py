"""A snapshot of volumes without a VM: which node takes it, and how that goes. Pure, but for reading the view.

Called by the controller of snapshots until the node has taken it, or has said that it didn't. From then on it is a snapshot like
any other. The order is in the snapshot's status, from which the API server gives it to the node.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from weft.controllers.allocation.active import active_allocation
from weft.controllers.node_reports import find_node_report
from weft.controllers.snapshot.lineage import find_parent, find_restore
from weft.controllers.snapshot.plan import PLACE_LOST
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import (
    ALLOCATIONS_BY_VOLUME,
    AllocationReport,
    AllocationSpec,
    has_ended_for_good,
    is_restoring,
)
from weft.kinds.node import NODES_BY_SNAPSHOT, NODES_BY_UID, NodeStatus
from weft.kinds.orders import VOLUME
from weft.kinds.parts.snapshot.volume_work import OrderedVolume, VolumeOrder, VolumeReport
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.registry import BY_NAME
from weft.kinds.snapshot import (
    SnapshotDisk,
    SnapshotMarks,
    SnapshotSpec,
    SnapshotStatus,
    is_of_volumes,
    read_workload,
    workload_key,
)
from weft.kinds.volume import VolumeMarks, VolumeSpec, VolumeStatus, has_size, is_coming, pool_of
from weft.objects.lifecycle import describe_phase

SOURCE_GONE, IN_USE, NO_DATA, NO_VOLUMES = "sourceGone", "inUse", "noData", "noVolumes"


class Waits(msgspec.Struct, frozen=True):
    """Why it can't be taken; with a reason of the phase Failed, why it never will."""

    reason: str
    message: str
    fails: bool = False


class VolumeLocation(msgspec.Struct, frozen=True):
    """Location of its volumes, and what the order depends on."""

    node: str
    node_uid: str
    disks: dict[str, SnapshotDisk]  # by name
    volumes: list[OrderedVolume]
    items: Sequence[Item] = ()


def is_taken_of_volumes(snapshot: Item) -> bool:
    """Whether its node has yet to say what became of it."""
    spec, status = snapshot.spec(SnapshotSpec), snapshot.status(SnapshotStatus)
    if not is_of_volumes(spec) or snapshot.marks(SnapshotMarks).backup:
        return False
    return status.volume_order is not None or (status.phase in ("Pending", "Taking") and not snapshot.deleting)


def plan_of_volumes(view: View, snapshot: Item) -> tuple[SnapshotStatus, Sequence[Item]]:
    """Its status, and what must be unchanged for that."""
    status = snapshot.status(SnapshotStatus)
    if status.volume_order is not None:
        return _follow(view, snapshot, status, status.volume_order), ()
    what = "/".join(read_workload(snapshot.spec(SnapshotSpec)))
    place = _find_place(view, snapshot, what)
    if isinstance(place, Waits):
        phase = "Failed" if place.fails else "Pending"
        return replace(status, phase=phase, reason=place.reason, message=place.message), ()
    source = place.items[0]
    order = VolumeOrder(
        uid=snapshot.uid,
        act="take",
        node_uid=place.node_uid,
        snapshot=snapshot.uid,
        snapshot_name=snapshot.envelope.name,
        volumes=place.volumes,
    )
    first = place.volumes[0]
    given = replace(
        status,
        phase="Taking",
        volume_order=order,
        node=place.node,
        node_uid=place.node_uid,
        pool=first.pool,
        pool_id=first.pool_id,
        disks=place.disks,
        workload_uid=source.uid,
        workload_spec=_read_spec(source),
        parent=find_parent(view, source, None, snapshot.uid),
        restored=find_restore(source, None)[0],
        reason="",
        message="",
    )
    return given, place.items


def _follow(view: View, snapshot: Item, status: SnapshotStatus, order: VolumeOrder) -> SnapshotStatus:
    nodes = view.find(NODES_BY_UID, order.node_uid)
    report = find_node_report(view, VOLUME, order)
    if snapshot.deleting:
        # Its node first takes it to the end: otherwise it might keep a snapshot that nobody knows.
        waits = bool(nodes) and (report is None or not report.is_over)
        message = "removed as soon as its node has ended taking it" if waits else ""
        return replace(status, phase="Deleting", message=message, volume_order=order if waits else None)
    if not nodes:
        message = f"node {status.node} left before the snapshot was taken"
        return replace(status, phase="Failed", volume_order=None, reason=PLACE_LOST, message=message)
    if report is None or not report.is_over:
        told = report.message if report is not None else ""
        if nodes[0].status(NodeStatus).phase != "Ready":
            told = f"waits for node {status.node}, which isn't ready"
        return replace(status, phase="Taking", message=told)
    if report.phase == "failed":
        reason, message = report.reason or "driverFailed", report.message or "the node could not take it"
        return replace(status, phase="Failed", volume_order=None, reason=reason, message=message)
    if not any(node.uid == order.node_uid for node in view.find(NODES_BY_SNAPSHOT, snapshot.uid)):
        return replace(status, phase="Taking", message=f"waits until {status.node} lists it")
    return _keep(status, report)


def _keep(status: SnapshotStatus, report: VolumeReport) -> SnapshotStatus:
    disks = {
        name: replace(disk, size=report.disks.get(disk.key, disk.size))
        for name, disk in status.disks.items()
        if not report.disks or disk.key in report.disks
    }
    return replace(
        status,
        phase="Ready",
        volume_order=None,
        listed=True,
        consistency=report.consistency,
        size=report.size,
        disks=disks,
        pause_ms=report.pause_ms,
        taken_at=report.taken_at or None,
        pool_id=report.pool_id or status.pool_id,
        reason="",
        message="",
    )


def _find_place(view: View, snapshot: Item, what: str) -> VolumeLocation | Waits:
    source = view.get(workload_key(snapshot))
    if source is None or source.deleting:
        gone = "is gone" if source is None else "is being deleted"
        return Waits(SOURCE_GONE, f"{what} {gone}", fails=True)
    automatic = snapshot.marks(SnapshotMarks).automatic
    if BY_NAME[source.envelope.kind].snapshots == "volume":
        return _find_volume(view, source, automatic)
    return _find_container(view, source)


def _find_volume(view: View, volume: Item, automatic: str) -> VolumeLocation | Waits:
    spec, status, name = volume.spec(VolumeSpec), volume.status(VolumeStatus), volume.envelope.name
    if is_coming(volume, status) and automatic != "restore":
        return Waits("isRestoring", f"volume/{name} is being restored: the snapshot waits")
    for allocation in view.find(ALLOCATIONS_BY_VOLUME, volume.uid):
        place = allocation.spec(AllocationSpec)
        if has_ended_for_good(place, allocation.report(AllocationReport)):
            continue
        of = place.workload
        if BY_NAME[of.kind].snapshots == "machine":
            what = f"backup create {of.kind}/{of.name}" if automatic == "backup" else f"{of.kind} snapshot {of.name}"
            hint = f"take one of that with all its disks: weft {what}"
            return Waits(IN_USE, f"volume/{name} is attached to {of.kind}/{of.name}; {hint}", fails=True)
        if waits := _find_obstacle(allocation, f"{of.kind}/{of.name}"):
            return waits
    if status.node is None or status.node_uid is None:
        return Waits(NO_DATA, f"volume/{name} has no data yet: nothing has used it", fails=True)
    pool = pool_of(spec, status)
    disks = {name: SnapshotDisk(key=volume.uid, size=has_size(spec, volume.marks(VolumeMarks), status), pool=pool)}
    ordered = [OrderedVolume(uid=volume.uid, name=name, pool=pool, pool_id=status.pool_id)]
    return VolumeLocation(status.node, status.node_uid, disks, ordered, [volume])


def _find_container(view: View, container: Item) -> VolumeLocation | Waits:
    name, allocation = container.envelope.name, active_allocation(view, container.uid)
    if allocation is None or allocation.deleting:
        return Waits("noPlace", f"container/{name} has no place, so its volumes have none")
    if waits := _find_obstacle(allocation, f"container/{name}"):
        return waits
    place = allocation.spec(AllocationSpec)
    if not place.volumes:
        return Waits(NO_VOLUMES, f"container/{name} mounts no volumes", fails=True)
    if allocation.report(AllocationReport).state in ("pending", "preparing", "starting"):
        status = container.status(WorkloadStatus)
        return Waits(
            "notStarted", f"container/{name} is {describe_phase(status.phase)}: the snapshot waits until it runs"
        )
    disks = {one.name: SnapshotDisk(key=one.uid, size=one.size, pool=one.pool) for one in place.volumes}
    ordered = [OrderedVolume(uid=one.uid, name=one.name, pool=one.pool, pool_id=one.pool_id) for one in place.volumes]
    return VolumeLocation(place.node, place.node_uid, disks, ordered, [container, allocation])


def _find_obstacle(allocation: Item, what: str) -> Waits | None:
    """Why nothing is taken of the volumes of an allocation now."""
    spec = allocation.spec(AllocationSpec)
    if spec.migration is not None or spec.role != "active":
        return Waits("isMigrating", f"{what} is migrating: the snapshot waits")
    if spec.storage is not None:
        return Waits("isMigrating", f"a disk of {what} is changing pools: the snapshot waits")
    if is_restoring(spec, allocation.report(AllocationReport)):
        return Waits("isRestoring", f"{what} is being restored: the snapshot waits")
    return None


def _read_spec(source: Item) -> dict[str, object]:
    """The part of a volume's spec that another one needs; of a container its mounts, since the rest may be secret."""
    if BY_NAME[source.envelope.kind].snapshots == "volume":
        spec = source.spec(VolumeSpec)
        size = has_size(spec, source.marks(VolumeMarks), source.status(VolumeStatus))
        return {"size": size, "pool": spec.pool}
    return {"mounts": list(getattr(spec_of(source), "mounts", []))}
