"""Gives workloads with copies a replication to another node of this cluster, and takes it away with them, or when it shall go.

A copy isn't taken away while the node of its workload is silent: it may be all that is left of it.

Reads VMs, volumes, allocations, nodes, replications, replicas; makes and deletes the workload's local replication and its replica,
and writes its condition Copied. Woken by those. Points are the replications controller's, their node is the replicas controller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import (
    ALLOCATIONS_BY_NODE,
    ALLOCATIONS_BY_WORKLOAD,
    LOCAL,
    LOST_BY_WORKLOAD,
    AllocationSpec,
)
from weft.kinds.fields.subject import split_subject
from weft.kinds.node import NODES_BY_POOL, NODES_BY_UID, SILENT_PHASES, NodeStatus
from weft.kinds.parts.workload import WORKLOADS_BY_UID, WORKLOADS_BY_VOLUME, WorkloadMarks
from weft.kinds.replica import REPLICA, ReplicaSpec
from weft.kinds.replication import (
    REPLICATION,
    REPLICATIONS_BY_SUBJECT,
    ReplicationSpec,
    ReplicationStatus,
    is_local,
    subject_of,
)
from weft.kinds.vm import VM, VmSpec
from weft.kinds.volume import VOLUME, VolumeSpec
from weft.objects.envelope import Condition
from weft.objects.identity import cut_name, object_key
from weft.objects.quantity import format_duration


class Target(msgspec.Struct, frozen=True):
    """Pool of the copy, the same as that of the disks; or the reason that there is no copy."""

    pool: str = ""  # "": it stays as it is
    why_not: str = ""


class SecondCopies:
    name = "copies"
    kinds = ("vm", "volume", "allocation", "replication", "replica", "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "vm":
                return (change.key,) if has_changed(change, _read_target) else ()
            case "volume" if has_changed(change, lambda item: (item.uid, item.spec(VolumeSpec).copies)):
                return [one.key for one in view.find(WORKLOADS_BY_VOLUME, change.key)]
            case "allocation" if has_changed(change, _read_disks):
                uid = change.item.spec(AllocationSpec).workload.uid
                return [one.key for one in view.find(WORKLOADS_BY_UID, uid)]
            case "replication" if is_local(change.item) and has_changed(change, _read_progress):
                return (subject_of(change.item),)
            case "replica" if change.item.envelope.owner is not None and has_changed(change, _read_being):
                kind, name = split_subject(change.item.spec(ReplicaSpec).of)
                return (object_key(kind, change.item.envelope.project, name),)
            case "node" if has_changed(change, _read_silence):
                places = view.find(ALLOCATIONS_BY_NODE, change.item.uid)
                uids = {one.spec(AllocationSpec).workload.uid for one in places}
                return [one.key for uid in uids for one in view.find(WORKLOADS_BY_UID, uid)]
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        return Plan([commit for key in keys if (commit := plan_copies(view, key, now)) is not None])


def _read_target(workload: Item) -> object:
    marks, spec = workload.marks(WorkloadMarks), workload.spec(VmSpec)
    going_on = marks.continues is not None
    return workload.uid, workload.deleting, marks.departed, marks.test is None, going_on, spec.copies, spec.volumes


def _read_disks(allocation: Item) -> object:
    spec = allocation.spec(AllocationSpec)
    return spec.role, spec.node_uid, spec.pool, spec.pool_id, spec.volumes


def _read_progress(replication: Item) -> object:
    status = replication.status(ReplicationStatus)
    spec = replication.spec(ReplicationSpec)
    return replication.uid, replication.deleting, status.phase, status.node, status.message, spec.rpo


def _read_silence(node: Item) -> object:
    return node.uid, node.status(NodeStatus).phase in SILENT_PHASES


def _read_being(item: Item) -> object:
    return item.uid, item.deleting


def plan_copies(view: View, key: str, now: float) -> Commit | None:
    """The next step for the workload with this key, which may be gone."""
    workload, draft = view.of_kind(VM.name).get(key), Draft()
    target = find_target(view, workload) if workload is not None else None
    waits_for = find_silent(view, workload) if workload is not None and not workload.deleting else ""
    kept, taken, is_leaving = None, "", False
    for one in view.find(REPLICATIONS_BY_SUBJECT, key):
        if not is_local(one):
            continue
        if workload is not None and target is not None and _fits(one, workload, target):
            kept = one
            continue
        is_leaving = True
        if waits_for:
            continue
        replica = view.get(object_key(REPLICA.name, one.envelope.project, one.envelope.name))
        for item in (one, replica if replica is not None and replica.envelope.owner == one.envelope.ref else None):
            if item is not None and not item.deleting:
                draft.change(item, deleting_since=now)
    if workload is not None:
        if target is not None and not is_leaving and (kept is not None or target.pool):
            taken = _make(draft, view, workload, kept, target.pool, now)
        if is_leaving and waits_for:
            why = f"its copy is kept until {waits_for}: it may be all that is left of it"
            _describe(draft, workload, Condition("Copied", "False", "kept", why, now))
        else:
            _describe(draft, workload, _fold(kept, target, taken, now))
    return draft.commit(key)


def _fits(replication: Item, workload: Item, target: Target) -> bool:
    owner, pool = replication.envelope.owner, replication.spec(ReplicationSpec).pool
    is_own = owner is not None and owner.uid == workload.uid and not replication.deleting
    return is_own and not target.why_not and target.pool in ("", pool)


def find_target(view: View, workload: Item) -> Target | None:
    """Target of its copy; None: people want none."""
    spec, project, marks = workload.spec(VmSpec), workload.envelope.project, workload.marks(WorkloadMarks)
    found = {name: view.get(object_key(VOLUME.name, project, name)) for name in spec.volumes}
    volumes = {name: one.spec(VolumeSpec) for name, one in found.items() if one is not None}
    asked = spec.copies > 1 or any(one.copies > 1 for one in volumes.values())
    if not asked or workload.deleting or marks.departed or marks.test is not None:
        return None
    if encrypted := next((name for name, one in volumes.items() if one.encrypted), None):
        return Target(why_not=f"volume {encrypted} is encrypted, and no copy of such a disk can be made")
    places = (one.spec(AllocationSpec) for one in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid))
    place = next((one for one in places if one.role == "active"), None)
    if place is None:
        return Target()
    disks = {f"volume {one.name}": (one.pool, one.pool_id) for one in place.volumes}
    for disk, (pool, storage) in {"the root disk": (place.pool, place.pool_id), **disks}.items():
        others = view.find(NODES_BY_POOL, storage) if pool != LOCAL and storage else ()
        if any(one.uid != place.node_uid for one in others):
            return Target(why_not=f"{disk} is in pool {pool}, which other nodes have too, so no copy of it is made")
        if pool != place.pool:
            return Target(why_not=f"{disk} is in pool {pool}, and the root disk in {place.pool}: a copy has one pool")
    return Target(place.pool)


def find_silent(view: View, workload: Item) -> str:
    """Event that must come before a copy of a workload is taken away, as it may be all that is left of it; empty if it runs, or
    rests, on a node that is heard."""
    if workload.marks(WorkloadMarks).continues is not None:
        return "it has begun again"
    places = (one.spec(AllocationSpec) for one in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid))
    place = next((one for one in places if one.role == "active"), None)
    if place is None:
        return "it has a place again" if view.find(LOST_BY_WORKLOAD, workload.uid) else ""
    nodes = view.find(NODES_BY_UID, place.node_uid)
    silent = any(one.status(NodeStatus).phase in SILENT_PHASES for one in nodes)
    return f"node {place.node} sends heartbeats again" if silent else ""


def _make(draft: Draft, view: View, workload: Item, kept: Item | None, pool: str, now: float) -> str:
    """Make what isn't there of the two; the object that has the name, if another has."""
    envelope = workload.envelope
    name, of = cut_name(envelope.name, "-copy"), f"{envelope.kind}/{envelope.name}"
    spec = kept.spec(ReplicationSpec) if kept is not None else ReplicationSpec(of=of, cluster="", pool=pool)
    if kept is not None:
        left = kept.envelope
        draft.preconditions.append(unchanged(kept))
    elif view.get(object_key(REPLICATION.name, envelope.project, name)) is not None:
        return f"replication/{name}"
    else:
        left = REPLICATION.make(name, spec, now, project=envelope.project, owner=envelope)
    there = view.get(object_key(REPLICA.name, envelope.project, left.name))
    if there is not None:
        return "" if there.envelope.owner == left.ref else f"replica/{left.name}"
    draft.preconditions.append(unchanged(workload))
    if kept is None:
        draft.make(left)
    into = ReplicaSpec(of=of, origin=left.uid, rpo=spec.rpo, keep=spec.keep, pool=spec.pool)
    draft.make(REPLICA.make(left.name, into, now, project=envelope.project, owner=left))
    return ""


def _describe(draft: Draft, workload: Item, condition: Condition) -> None:
    former = workload.envelope.condition("Copied")
    if former is None and not condition.reason:
        return
    if former is None or (former.status, former.reason, former.message) != (
        condition.status,
        condition.reason,
        condition.message,
    ):
        draft.change(workload, conditions=[condition])


def _fold(kept: Item | None, target: Target | None, taken: str, now: float) -> Condition:
    if target is None:
        return Condition("Copied", "False", "", "its spec has no second copy", now)
    if target.why_not:
        return Condition("Copied", "False", "noCopy", target.why_not, now)
    if taken:
        return Condition("Copied", "False", "nameTaken", f"{taken} is there, and of something else", now)
    if kept is None:
        return Condition("Copied", "False", "pending", "its copy begins once it has a place", now)
    status, spec = kept.status(ReplicationStatus), kept.spec(ReplicationSpec)
    if status.phase == "Replicating":
        rpo, name = format_duration(spec.rpo), kept.envelope.name
        message = f"node {status.node} has a copy, at most {rpo} old: weft replication list {name}"
        return Condition("Copied", "True", "", message, now)
    why = status.message or f"replication/{kept.envelope.name} is {status.phase}"
    return Condition("Copied", "False", "notCopied", why, now)
