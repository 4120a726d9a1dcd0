"""Volumes whose data comes from a snapshot by itself, or goes back to one: which node does it, and how that goes. Pure, but for
reading the view.

Called by the controller of volumes, which writes the status. The order is in it, from which the API server gives it to the node; no
workload gets the volume meanwhile. What stands there is kept by a snapshot of its own, which is taken first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from weft.controllers.node_reports import find_node_report
from weft.informer.quotas import read_quota
from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_VOLUME, AllocationReport, AllocationSpec, has_ended_for_good
from weft.kinds.node import NODES_BY_SNAPSHOT, NODES_BY_UID, NodeStatus
from weft.kinds.orders import VOLUME
from weft.kinds.parts.snapshot.restored import VolumeOrigin, VolumeRestore
from weft.kinds.parts.snapshot.volume_work import OrderedVolume, VolumeOrder, VolumeReport
from weft.kinds.snapshot import SNAPSHOT, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.volume import VolumeMarks, VolumeSpec, VolumeStatus, has_size, pool_of, read_origin, read_restore
from weft.objects.envelope import Envelope
from weft.objects.identity import cut_name, object_key


class RestoreStep(msgspec.Struct, frozen=True):
    """``make``: a Snapshot of what stands there, to create with the status. ``needs`` must be unchanged for it."""

    make: Envelope | None = None
    needs: Sequence[Item] = ()


def plan_data(view: View, volume: Item, status: VolumeStatus, now: float) -> RestoreStep:
    """Change ``status`` by what its data needs next."""
    origin, asked = read_origin(volume), read_restore(volume)
    if status.order is not None and (volume.deleting or not _is_wanted(asked, status)):
        _end(view, status, status.order)
        return RestoreStep()
    if volume.deleting:
        return RestoreStep()
    if origin is not None and origin.alone and status.node_uid is None:
        return _make(view, volume, status, origin)
    if asked is not None and asked.generation > status.restored:
        return _restore(view, volume, status, asked, now)
    if asked is None or asked.generation != status.restored:
        status.reason = status.message = ""
    return RestoreStep()


def _is_wanted(asked: VolumeRestore | None, status: VolumeStatus) -> bool:
    assert status.order is not None
    if status.order.act == "make":
        return status.node_uid is None  # else its node has listed it already
    return asked is not None and asked.generation == status.order.generation


def _end(view: View, status: VolumeStatus, order: VolumeOrder) -> None:
    """Its node first brings it to its end: otherwise data could come to be that nobody knows."""
    report = find_node_report(view, VOLUME, order)
    if view.find(NODES_BY_UID, order.node_uid) and (report is None or report.phase == "working"):
        return
    if report is not None and report.phase == "done" and status.node_uid in (None, order.node_uid):
        _settle(view, status, order, report)
    status.order, status.reason, status.message = None, "", ""


def _make(view: View, volume: Item, status: VolumeStatus, origin: VolumeOrigin) -> RestoreStep:
    source = f"snapshot/{origin.snapshot}"
    if status.order is not None and (report := find_node_report(view, VOLUME, status.order)) is not None:
        if report.phase == "done":
            _settle(view, status, status.order, report)
            status.order, status.reason, status.message = None, "", ""
            return RestoreStep()
        status.reason = report.reason if report.is_over else ""
        status.message = report.message or f"is being made from {source}"
        return RestoreStep()
    if status.order is not None and (nodes := view.find(NODES_BY_UID, status.order.node_uid)):
        if nodes[0].status(NodeStatus).phase != "Ready":
            status.message = f"waits for node {nodes[0].envelope.name}, which isn't ready"
        return RestoreStep()
    status.order = None
    snapshot = view.get(object_key(SNAPSHOT.name, volume.envelope.project, origin.snapshot))
    if snapshot is None or snapshot.deleting:
        gone = "is gone" if snapshot is None else "is being deleted"
        status.reason, status.message = "snapshotGone", f"{source}, from which it is made, {gone}: delete the volume"
        return RestoreStep()
    made = snapshot.status(SnapshotStatus)
    if made.phase == "Failed":
        status.reason = "snapshotFailed"
        status.message = f"{source}, from which it is made, failed: {made.message or made.reason}"
        return RestoreStep()
    if made.phase != "Ready":
        why = f": {made.message}" if made.phase == "Unavailable" else ""
        status.reason, status.message = "", f"waits until {source} is ready{why}"
        return RestoreStep()
    disk, holders = made.disks.get(origin.disk), view.find(NODES_BY_SNAPSHOT, snapshot.uid)
    home = next((node for node in holders if node.uid == made.node_uid), next(iter(holders), None))
    if disk is None:
        status.reason, status.message = "snapshotFailed", f"{source} has no disk {origin.disk}"
        return RestoreStep()
    if home is None:
        status.reason, status.message = "", f"waits for node {made.node}, which has {source}"
        return RestoreStep()
    name, spec = volume.envelope.name, volume.spec(VolumeSpec)
    shared = made.pool_id if spec.pool == made.pool and spec.pool != "local" else ""
    status.order = VolumeOrder(
        uid=volume.uid,
        act="make",
        node_uid=home.uid,
        snapshot=snapshot.uid,
        snapshot_name=origin.snapshot,
        volumes=[OrderedVolume(uid=volume.uid, name=name, pool=spec.pool, pool_id=shared)],
        disk=disk.key,
        size=spec.size,
    )
    status.reason, status.message = "", f"is being made from {source} on {home.envelope.name}"
    return RestoreStep(needs=[snapshot])


def _settle(view: View, status: VolumeStatus, order: VolumeOrder, report: VolumeReport) -> None:
    """Its data is there now."""
    nodes = view.find(NODES_BY_UID, order.node_uid)
    if nodes:
        status.node, status.node_uid = nodes[0].envelope.name, nodes[0].uid
        status.pool, status.pool_id = report.pool or order.volumes[0].pool, report.pool_id
        status.size = order.size


def _restore(view: View, volume: Item, status: VolumeStatus, asked: VolumeRestore, now: float) -> RestoreStep:
    source = f"snapshot/{asked.snapshot}"
    if status.order is not None:
        report = find_node_report(view, VOLUME, status.order)
        if report is not None and report.phase == "done":
            status.order, status.restored, status.reason, status.message = None, asked.generation, "", ""
        elif report is not None and report.is_over:
            _give_up(status, asked, report.reason or "driverFailed", report.message)
        elif not view.find(NODES_BY_UID, status.order.node_uid):
            _give_up(status, asked, "nodeGone", f"node {status.node} is gone")
        else:
            is_ready = view.find(NODES_BY_UID, status.order.node_uid)[0].status(NodeStatus).phase == "Ready"
            waits = "" if is_ready else f"waits for node {status.node}, which isn't ready"
            told = report.message if report is not None else ""
            status.reason, status.message = "", waits or told or f"goes back to {source}"
        return RestoreStep()
    snapshot = view.get(object_key(SNAPSHOT.name, volume.envelope.project, asked.snapshot))
    if snapshot is None or snapshot.deleting:
        return _give_up(status, asked, "snapshotGone", f"{source} is gone: the data stays as it is")
    made = snapshot.status(SnapshotStatus)
    if made.phase != "Ready":
        return _give_up(status, asked, "snapshotFailed", f"{source} is {made.phase}: the data stays as it is")
    if volume.uid not in {disk.key for disk in made.disks.values()}:
        return _give_up(status, asked, "disksDiffer", f"{source} is of another volume: the data stays as it is")
    if not any(node.uid == status.node_uid for node in view.find(NODES_BY_SNAPSHOT, snapshot.uid)):
        where = f"{source} is on {made.node}, and the volume on {status.node}: restore it under a new name"
        return _give_up(status, asked, "elsewhere", where)
    if holder := _find_holder(view, volume):
        status.reason, status.message = "", f"waits until {holder} is gone, which has it"
        return RestoreStep()
    if asked.keep and (step := _keep(view, volume, status, asked, now)) is not None:
        return step
    name, spec = volume.envelope.name, volume.spec(VolumeSpec)
    assert status.node_uid is not None  # a node lists the snapshot and is its home
    status.order = VolumeOrder(
        uid=volume.uid,
        act="replace",
        node_uid=status.node_uid,
        generation=asked.generation,
        snapshot=snapshot.uid,
        snapshot_name=asked.snapshot,
        volumes=[OrderedVolume(uid=volume.uid, name=name, pool=pool_of(spec, status), pool_id=status.pool_id)],
        disk=volume.uid,
        size=has_size(spec, volume.marks(VolumeMarks), status),
    )
    status.reason, status.message = "", f"goes back to {source}"
    return RestoreStep(needs=[snapshot])


def _keep(view: View, volume: Item, status: VolumeStatus, asked: VolumeRestore, now: float) -> RestoreStep | None:
    """Have what stands there kept. None: it is kept."""
    name = name_kept(volume, asked)
    kept = view.get(object_key(SNAPSHOT.name, volume.envelope.project, name))
    if kept is None:
        spec = SnapshotSpec(of=f"volume/{volume.envelope.name}")
        project, creator = volume.envelope.project, volume.envelope.creator
        quota = read_quota(view, project)
        if quota is not None and (excess := quota.describe_excess(SNAPSHOT.name, spec, creator)):
            message = f"what stands there could not be kept: {excess}; restore it without keeping that: --yes"
            return _give_up(status, asked, "quotaExceeded", message)
        status.reason, status.message = "", f"what stands there is being kept as snapshot/{name}"
        marks = SnapshotMarks(automatic="restore")
        return RestoreStep(make=SNAPSHOT.make(name, spec, now, project=project, creator=creator, marks=marks))
    stand = kept.status(SnapshotStatus)
    if kept.deleting or stand.phase == "Failed":
        why = "was deleted" if kept.deleting else f"failed: {stand.message}"
        message = f"what stands there could not be kept, since snapshot/{name} {why}: the data stays as it is"
        return _give_up(status, asked, "keepFailed", message)
    return None if stand.phase == "Ready" else RestoreStep()


def name_kept(volume: Item, asked: VolumeRestore) -> str:
    """The name of the snapshot that keeps what stood there before this restore."""
    mark = hashlib.sha256(f"{volume.uid}/{asked.generation}".encode()).hexdigest()[:5]
    return cut_name(volume.envelope.name, f"-before-{mark}")


def _give_up(status: VolumeStatus, asked: VolumeRestore, reason: str, message: str) -> RestoreStep:
    status.order, status.restored, status.reason, status.message = None, asked.generation, reason, message
    return RestoreStep()


def _find_holder(view: View, volume: Item) -> str:
    for item in view.find(ALLOCATIONS_BY_VOLUME, volume.uid):
        spec = item.spec(AllocationSpec)
        if not has_ended_for_good(spec, item.report(AllocationReport)):
            return f"{spec.workload.kind}/{spec.workload.name}"
    return ""
