"""Restores workloads from snapshots in place: gives their allocation its origin, and says in the condition Restored how that goes.

Reads workloads, their allocations, snapshots and nodes; writes the origin in allocations, the condition Restored of workloads, and
new Snapshots of what stood there. Woken by any of those. A restore that can't be done is given up: another one may take its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.controllers.allocation.active import active_allocation
from weft.controllers.loop import Plan
from weft.controllers.snapshot.controller import read_spec
from weft.controllers.snapshot.facts import list_disks, list_orders
from weft.controllers.snapshot.lineage import find_parent, find_restore
from weft.informer.commit import Commit, Draft, edit, put, unchanged
from weft.informer.quotas import read_quota
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import ROOT, AllocationReport, AllocationSpec, is_restoring
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, AllocatedSnapshot
from weft.kinds.node import NODES_BY_SNAPSHOT
from weft.kinds.parts.snapshot.restored import VmRestore
from weft.kinds.parts.snapshot.verbs import GIVEN_UP, KEEPS_TOO_MUCH, RESTORE_FAILED, RESTORED, TRIED_AGAIN
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.replica import REPLICA, ReplicaStatus
from weft.kinds.snapshot import SNAPSHOT, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VMS_BY_RESTORE, VmActions, VmSpec
from weft.objects.envelope import Condition, Envelope, set_condition
from weft.objects.identity import cut_name, new_uid, object_key

SOURCE = "restores"


class Restores:
    name = "restores"
    kinds = ("vm", "allocation", "snapshot")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "vm":
                if has_changed(change, lambda item: (item.uid, item.actions(VmActions).restore, item.deleting)):
                    return (change.key,)
            case "snapshot":
                if has_changed(change, lambda item: (item.uid, item.deleting, item.status(SnapshotStatus).phase)):
                    return [item.key for item in view.find(VMS_BY_RESTORE, change.key)]
            case "allocation":
                workload = change.item.spec(AllocationSpec).workload
                if workload.kind in self.kinds and has_changed(change, _restore_relevant_state):
                    return (object_key(workload.kind, workload.project, workload.name),)
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        workloads = [workload for key in keys if (workload := view.get(key)) is not None]
        return Plan([commit for workload in workloads if (commit := plan_restore(view, workload, now)) is not None])


def plan_restore(view: View, workload: Item, now: float) -> Commit | None:
    """The next step of a workload's last restore in place; None if nobody asked for one."""
    asked = workload.actions(VmActions).restore
    if asked is None or workload.deleting or _is_over(workload, asked):
        return None
    place = active_allocation(view, workload.uid)
    if place is not None and (stand := _follow(place, asked)) is not None:
        return _write(workload, asked, stand, now)
    obstacle = _find_obstacle(view, workload, place, asked)
    if obstacle is not None:
        return _write(workload, asked, obstacle, now)
    assert place is not None
    return _begin(view, workload, place, asked, now)


def _is_over(workload: Item, asked: VmRestore) -> bool:
    """Whether this restore is done or given up. One that its node tries again may be done yet."""
    now = workload.envelope.condition(RESTORED)
    if now is None or now.generation < asked.generation:
        return False
    return now.status == "True" or now.reason in GIVEN_UP


def _follow(place: Item, asked: VmRestore) -> tuple[bool, str, str] | None:
    """How a restore that the allocation has goes: whether it is done, reason and sentence. None: it does not have it."""
    spec, report = place.spec(AllocationSpec), place.report(AllocationReport)
    if spec.origin is None or spec.origin.generation != asked.generation:
        return None
    if not is_restoring(spec, report):
        return True, "Restored", f"its disks are those of snapshot/{asked.snapshot}"
    if report.state == "failed" and report.reason:
        return False, RESTORE_FAILED, f"{spec.node} can't restore it and tries again: {report.message or report.reason}"
    return False, "Restoring", f"{spec.node} goes back to snapshot/{asked.snapshot}"


def _find_obstacle(view: View, workload: Item, place: Item | None, asked: VmRestore) -> tuple[bool, str, str] | None:
    """Why it can't begin yet; with a reason in GIVEN_UP, why it never will."""
    source = f"snapshot/{asked.snapshot}"
    snapshot = view.get(object_key("snapshot", workload.envelope.project, asked.snapshot))
    if snapshot is None or snapshot.deleting:
        return False, "SnapshotGone", f"{source} is gone: the disks stay as they are"
    status = snapshot.status(SnapshotStatus)
    if status.phase != "Ready":
        return False, "SnapshotFailed", f"{source} is {status.phase}: the disks stay as they are"
    if status.workload_uid != workload.uid and not _continues(view, snapshot, workload):
        return False, "DisksDiffer", f"{source} is of another workload: the disks stay as they are"
    if place is None or place.deleting:
        return False, "NoPlace", "waits until the workload has a place"
    spec = place.spec(AllocationSpec)
    if spec.migration is not None or spec.storage is not None:
        migration = workload.status(WorkloadStatus).migration
        return False, "Migrating", f"waits until migration/{migration} has ended" if migration else "waits: it migrates"
    if list_orders(place):
        return False, "TakingSnapshot", "waits until a snapshot of it is taken"
    if status.image_sha256 and spec.image is not None and spec.image.sha256 != status.image_sha256:
        return False, "DisksDiffer", f"{source} stands on an earlier content of image {spec.image.name}"
    if not any(node.uid == spec.node_uid for node in view.find(NODES_BY_SNAPSHOT, snapshot.uid)):
        where = f"{source} is on {status.node}, and the workload on {spec.node}: restore it under a new name"
        return False, "SnapshotElsewhere", where
    if asked.keep and (excess := _find_excess(view, workload)):
        return False, KEEPS_TOO_MUCH, f"what stands there can't be kept: {excess}: the disks stay as they are"
    return None


def _continues(view: View, snapshot: Item, workload: Item) -> bool:
    """Whether it is a point of a replica that continues the workload's own disks."""
    name = snapshot.marks(SnapshotMarks).replica
    replica = view.get(object_key(REPLICA.name, workload.envelope.project, name)) if name else None
    return replica is not None and replica.status(ReplicaStatus).vm_uid == workload.uid


def _find_excess(view: View, workload: Item) -> str:
    """Excess over the project's quota of the snapshot of what stands there; "" if it fits."""
    quota = read_quota(view, workload.envelope.project)
    if quota is None:
        return ""
    return quota.describe_excess(SNAPSHOT.name, SnapshotSpec(of="vm/-"), workload.envelope.creator)


def _begin(view: View, workload: Item, place: Item, asked: VmRestore, now: float) -> Commit | None:
    """Give the allocation its origin, with a Snapshot of what stands there."""
    snapshot = view.get(object_key("snapshot", workload.envelope.project, asked.snapshot))
    assert snapshot is not None
    spec, there = place.spec(AllocationSpec), {disk.key for disk in snapshot.status(SnapshotStatus).disks.values()}
    own = [ROOT, *(volume.uid for volume in spec.volumes if volume.uid in there)]
    draft = Draft(snapshot)
    keeps = None
    if asked.keep:
        kept = _keep(view, workload, place, asked, now)
        draft.make(kept)
        if (quota := read_quota(view, workload.envelope.project)) is not None:
            quota.guard(draft)
        keeps = AllocatedSnapshot(uid=kept.uid, name=kept.name)
    origin = AllocatedOrigin(
        snapshot=snapshot.uid,
        name=asked.snapshot,
        generation=asked.generation,
        disks={disk: disk for disk in own},
        memory=asked.memory,
        keeps=keeps,
    )
    draft.change(place, spec=msgspec.structs.replace(spec, origin=origin))
    envelope = edit(workload)
    set_condition(envelope, _make_condition(asked, _follow_new(spec.node, asked), now))
    draft.writes.append(put(envelope))
    draft.preconditions.append(unchanged(workload))
    text = f"goes back to snapshot/{asked.snapshot}"
    if keeps is not None:
        text = f"{text}; what stood there is kept as snapshot/{keeps.name}"
    return draft.commit(workload.key, [Event("Normal", "Restoring", text, workload.envelope.ref, SOURCE)])


def _follow_new(node: str, asked: VmRestore) -> tuple[bool, str, str]:
    return False, "Restoring", f"{node} goes back to snapshot/{asked.snapshot}"


def _keep(view: View, workload: Item, allocation: Item, asked: VmRestore, now: float) -> Envelope:
    """The Snapshot of what stands there: its node takes it as the first act of the restore."""
    place = allocation.spec(AllocationSpec)
    status = SnapshotStatus(
        phase="Taking",
        disks=list_disks(place),
        node=place.node,
        node_uid=place.node_uid,
        pool=place.pool,
        pool_id=place.pool_id,
        image_sha256=place.image.sha256 if place.image is not None else "",
        parent=find_parent(view, workload, allocation),
        restored=find_restore(workload, allocation)[0],
        workload_uid=workload.uid,
        workload_spec=read_spec(workload),
    )
    spec = SnapshotSpec(of=f"vm/{workload.envelope.name}")
    project = workload.envelope.project
    return SNAPSHOT.make(
        _name_kept(view, workload, asked),
        spec,
        now,
        uid=new_uid(),
        project=project,
        creator=workload.envelope.creator,
        marks=SnapshotMarks(automatic="restore", image=workload.spec(VmSpec).image),
        status=status,
    )


def _name_kept(view: View, workload: Item, asked: VmRestore) -> str:
    """A free name for it."""
    for count in range(100):
        mark = hashlib.sha256(f"{workload.uid}/{asked.generation}/{count}".encode()).hexdigest()[:5]
        name = cut_name(workload.envelope.name, f"-before-{mark}")
        if view.get(object_key("snapshot", workload.envelope.project, name)) is None:
            break
    return name


def _write(workload: Item, asked: VmRestore, stand: tuple[bool, str, str], now: float) -> Commit | None:
    condition = _make_condition(asked, stand, now)
    former = workload.envelope.condition(RESTORED)
    envelope = edit(workload)
    if not set_condition(envelope, condition):
        return None
    differs = former is None or (former.reason, former.generation) != (condition.reason, condition.generation)
    kind: Literal["Normal", "Warning"] = "Normal" if stand[0] or stand[1] not in GIVEN_UP | TRIED_AGAIN else "Warning"
    events = [Event(kind, condition.reason, condition.message, workload.envelope.ref, SOURCE)] if differs else []
    return Commit(workload.key, [put(envelope)], [unchanged(workload)], events)


def _make_condition(asked: VmRestore, stand: tuple[bool, str, str], now: float) -> Condition:
    done, reason, message = stand
    return Condition("Restored", "True" if done else "False", reason, message, now, asked.generation)


def _restore_relevant_state(allocation: Item) -> object:
    spec, report = allocation.spec(AllocationSpec), allocation.report(AllocationReport)
    return (
        *(allocation.uid, allocation.deleting, spec.role, spec.migration, spec.storage, spec.snapshots, spec.origin),
        *(report.restored, report.state, report.reason),
    )
