"""Has the points of replicas taken in: chooses their node, orders the next point, makes a Snapshot of each that came, and removes
old ones.

Reads replicas, replications, VMs, snapshots, nodes; writes replica.status with the order for its node, makes and deletes the
snapshots of points, releases the finalizer "replica". A promotion of one that continues a VM here has that VM go back to the point,
and ends the replication that had left it. Woken by any of those. Nodes get the order with the API server's answers to their
reports, and report on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.replica.plan import CandidateNode, ReplicaFacts, ReplicaPlan, Returned, plan_replica
from weft.controllers.replication.target import find_target
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import ROOT
from weft.kinds.node import NODES_BY_UID, NodeReport, NodeStatus
from weft.kinds.orders import find_report
from weft.kinds.parts.snapshot.restored import VmRestore
from weft.kinds.parts.snapshot.verbs import GIVEN_UP, RESTORED
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus
from weft.kinds.recovery_plan import RECOVERY_PLANS_BY_SNAPSHOT
from weft.kinds.replica import (
    REPLICAS_BY_NODE,
    REPLICAS_BY_POINT,
    REPLICAS_BY_RETURNED,
    REPLICAS_BY_UID,
    Point,
    ReplicaMarks,
    ReplicaSpec,
    ReplicaStatus,
    is_stopped_there,
)
from weft.kinds.replication import (
    REPLICATIONS_BY_SUBJECT,
    REPLICATIONS_BY_UID,
    ReplicationSpec,
    ReplicationStatus,
    subject_of,
)
from weft.kinds.snapshot import SNAPSHOT, SNAPSHOTS_BY_UID, SnapshotDisk, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VmActions, VmSpec
from weft.objects.envelope import Envelope
from weft.objects.identity import CLUSTER_PREFIX, new_uid, object_key
from weft.objects.quantity import format_bytes

FINALIZER, SOURCE = "replica", "replicas"
RETRY_SECONDS = 30.0  # while its node isn't Ready, or none has the capacity


class Replicas:
    name = "replicas"
    kinds = ("replica", "replication", "vm", "snapshot", "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "replica":
                return (change.key,)
            case "snapshot":
                if has_changed(change, lambda item: (item.uid, item.deleting, item.status(SnapshotStatus).phase)):
                    return [item.key for item in view.find(REPLICAS_BY_POINT, change.item.uid)]
            case "replication":
                return [item.key for item in view.find(REPLICAS_BY_RETURNED, change.item.uid)]
            case "vm":
                if has_changed(change, _replica_relevant_state):
                    found = view.find(REPLICATIONS_BY_SUBJECT, change.item.key)
                    own = (target for one in found if (target := find_target(view, one)) is not None)
                    back = (item for one in found for item in view.find(REPLICAS_BY_RETURNED, one.uid))
                    return [item.key for item in (*own, *back)]
            case "node":
                return _route_node(view, change)
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            replica = view.get(key)
            if replica is None:
                continue
            commit = plan_one(view, replica, now)
            if commit is not None:
                plan.commits.append(commit)
            elif replica.status(ReplicaStatus).reason:
                plan.later[key] = RETRY_SECONDS
        return plan


def _replica_relevant_state(workload: Item) -> object:
    told, marks = workload.envelope.condition(RESTORED), workload.marks(WorkloadMarks)
    fence = marks.fenced, marks.guard, marks.continues
    node, restore = workload.status(WorkloadStatus).node, workload.actions(VmActions).restore
    return workload.uid, workload.deleting, fence, node, restore, told


def _route_node(view: View, change: Changed) -> Iterable[str]:
    items = [item for item in (change.old, change.new) if item is not None]
    if has_changed(change, lambda node: (node.uid, node.status(NodeStatus).phase)):
        return [one.key for uid in ("", *(item.uid for item in items)) for one in view.find(REPLICAS_BY_NODE, uid)]
    if has_changed(change, lambda node: (node.report(NodeReport).orders.receive, node.report(NodeReport).snapshots)):
        uids = {one.uid for item in items for one in item.report(NodeReport).orders.receive}
        return [item.key for uid in sorted(uids) for item in view.find(REPLICAS_BY_UID, uid)]
    return ()


def read_facts(view: View, replica: Item) -> ReplicaFacts:
    spec, status = replica.spec(ReplicaSpec), replica.status(ReplicaStatus)
    found = [item for one in status.points for item in view.find(SNAPSHOTS_BY_UID, one.snapshot_uid)]
    usable = [item.uid for item in found if not item.deleting and item.status(SnapshotStatus).phase != "Failed"]
    nodes = list(view.find(NODES_BY_UID, status.node_uid)) if status.node_uid else []
    report, is_listed = None, False
    if status.order is not None:
        for node in view.find(NODES_BY_UID, status.order.node_uid):
            report = find_report(node.report(NodeReport).orders.receive, status.order)
            is_listed = any(one.uid == status.order.snapshot for one in node.report(NodeReport).snapshots)
    returned, keys = find_returned(view, replica), {one.uid: _list_keys(one) for one in found}
    if returned is not None and returned.point is not None:
        keys[returned.point.snapshot_uid] = returned.disks
    avoided, continued = _read_source(view, replica)
    return ReplicaFacts(
        name=replica.envelope.name,
        uid=replica.uid,
        deleting=replica.deleting,
        spec=spec,
        marks=replica.marks(ReplicaMarks),
        status=status,
        snapshots=frozenset(usable),
        pinned=frozenset(
            one.snapshot_uid
            for one in status.points
            if view.find(RECOVERY_PLANS_BY_SNAPSHOT, one.snapshot_uid) or one.snapshot_uid == continued
        ),
        held=bool(found),
        places=list_places(view, spec.pool, status.node_uid, avoided),
        is_local=replica.envelope.owner is not None,
        avoided=avoided,
        node_exists=bool(nodes),
        is_autonomous=bool(nodes) and nodes[0].status(NodeStatus).phase == "Autonomous",
        report=report,
        is_listed=is_listed,
        fresh_uid=new_uid(),
        returned=returned,
        keys=keys,
    )


def _list_keys(snapshot: Item) -> frozenset[str]:
    return frozenset(disk.key for disk in snapshot.status(SnapshotStatus).disks.values())


def find_returned(view: View, replica: Item) -> Returned | None:
    """The VM here that the replica continues. The other cluster only names it: what counts is that a replication of this project to
    that cluster, and no other, has left the VM to it."""
    spec, envelope = replica.spec(ReplicaSpec), replica.envelope
    for left in view.find(REPLICATIONS_BY_UID, spec.returns) if spec.returns else ():
        status, name = left.status(ReplicationStatus), left.envelope.name
        vm = view.get(subject_of(left))
        if (left.envelope.project, f"{CLUSTER_PREFIX}{left.spec(ReplicationSpec).cluster}") != (
            envelope.project,
            envelope.creator,
        ):
            continue
        if vm is None or vm.deleting or vm.uid != status.workload_uid:
            continue
        own = (view.get(object_key("volume", envelope.project, one)) for one in vm.spec(VmSpec).volumes)
        disks = frozenset({ROOT, *(volume.uid for volume in own if volume is not None)})
        found = _follow_return(
            Returned(vm.envelope.name, vm.uid, name, vm.marks(WorkloadMarks).fenced == name, disks), vm
        )
        point = status.point
        for item in view.find(SNAPSHOTS_BY_UID, point.snapshot_uid) if point is not None and point.snapshot_uid else ():
            taken = item.status(SnapshotStatus)
            fits = _list_keys(item) == disks and all(disk.pool == spec.pool for disk in taken.disks.values())
            if point is not None and taken.phase == "Ready" and not item.deleting and fits:
                common = Point(
                    number=point.number,
                    snapshot=point.snapshot,
                    snapshot_uid=point.snapshot_uid,
                    source=point.snapshot_uid,
                    generation=replica.marks(ReplicaMarks).generation,
                    taken_at=point.taken_at,
                    received_at=point.begun_at,
                )
                return replace(found, point=common, node=taken.node or "", node_uid=taken.node_uid or "")
        return found
    return None


def _read_source(view: View, replica: Item) -> tuple[str, str]:
    """Node that the VM of a replica in this cluster is on, where a copy would be lost with it; and the uid of the snapshot that it
    goes on from now. Empty: there is none."""
    owner = replica.envelope.owner
    left = view.get(object_key(owner.kind, owner.project, owner.name)) if owner is not None else None
    vm = view.get(subject_of(left)) if left is not None else None
    if vm is None:
        return "", ""
    point = vm.marks(WorkloadMarks).continues
    return vm.status(WorkloadStatus).node or "", point.snapshot_uid if point is not None else ""


def list_places(view: View, pool: str, present: str = "", avoided: str = "") -> list[CandidateNode]:
    """The nodes that are Ready and have the pool, without the one named ``avoided``; of these only the one with the uid
    ``present``, if it is among them."""

    def choose(nodes: Iterable[Item]) -> list[CandidateNode]:
        return [
            CandidateNode(node.envelope.name, node.uid, one.free)
            for node in nodes
            if node.status(NodeStatus).phase == "Ready" and not node.deleting and node.envelope.name != avoided
            for one in node.report(NodeReport).pools
            if one.name == pool
        ]

    return (choose(view.find(NODES_BY_UID, present)) if present else []) or choose(view.of_kind("node").values())


def plan_one(view: View, replica: Item, now: float) -> Commit | None:
    facts = read_facts(view, replica)
    plan = plan_replica(facts, now)
    if plan.release:
        return Commit(replica.key, [let_go(replica, FINALIZER)], [unchanged(replica)])
    draft = Draft()
    if plan.arrived is not None:
        draft.make(make_snapshot(view, replica, facts, plan.arrived))
    for uid in plan.drop:
        for item in view.find(SNAPSHOTS_BY_UID, uid):
            if not item.deleting:
                draft.change(item, deleting_since=now)
    if plan.status != facts.status:
        draft.change(replica, status=plan.status)
    if facts.returned is not None and (plan.go_back is not None or plan.start):
        _change_vm(draft, view, facts.returned, replica, plan, now)
    return draft.commit(replica.key, _list_events(replica, facts, plan))


def _follow_return(found: Returned, workload: Item) -> Returned:
    """How the workload's last restore in place goes."""
    asked, told = workload.actions(VmActions).restore, workload.envelope.condition(RESTORED)
    if asked is None:
        return found
    if told is None or told.generation < asked.generation:
        return replace(found, asked=asked.snapshot)
    trouble = told.message if told.status != "True" and told.reason in GIVEN_UP else ""
    return replace(found, asked=asked.snapshot, has_gone=told.status == "True", trouble=trouble)


def _change_vm(draft: Draft, view: View, returned: Returned, replica: Item, plan: ReplicaPlan, now: float) -> None:
    """The VM goes back to the point, stopped as it is; what it had written after the last common point is kept as a snapshot. It
    starts after that, and the replication that had left it is over."""
    project = replica.envelope.project
    workload = view.get(object_key("vm", project, returned.vm))
    left = view.get(object_key("replication", project, returned.replication))
    if workload is None or left is None:
        return
    spec, marks = workload.spec(VmSpec), workload.marks(WorkloadMarks)
    if plan.go_back is not None:
        status, generation = left.status(ReplicationStatus), workload.envelope.generation + 1
        keep = status.phase == "Stale" and not (status.point is not None and status.point.final)
        restore = VmRestore(snapshot=plan.go_back.snapshot, generation=generation, keep=keep)
        draft.change(workload, actions=replace(workload.actions(VmActions), restore=restore))
    elif not marks.guard:  # else its nodes let it go first: nobody confirms it any more
        # People who promote it start it; a take-over leaves it as it was.
        stays = bool(replica.marks(ReplicaMarks).granted) and is_stopped_there(replica.spec(ReplicaSpec))
        own = replace(marks, fenced="")
        draft.change(workload, spec=replace(spec, run="stop" if stays else "run"), marks=own)
        draft.change(left, deleting_since=now)


def make_snapshot(view: View, replica: Item, facts: ReplicaFacts, point: Point) -> Envelope:
    """The Snapshot of a point that came: its node has it, so it is Ready."""
    status, report, envelope = facts.status, facts.report, replica.envelope
    assert report is not None
    pool_id = next(
        (
            one.id
            for node in view.find(NODES_BY_UID, status.node_uid)
            for one in node.report(NodeReport).pools
            if one.name == facts.spec.pool
        ),
        "",
    )
    former = next((item for one in status.points[-1:] for item in view.find(SNAPSHOTS_BY_UID, one.snapshot_uid)), None)
    disks = {
        name: SnapshotDisk(key=disk.key, size=disk.size, pool=facts.spec.pool) for name, disk in report.disks.items()
    }
    taken = SnapshotStatus(
        phase="Ready",
        consistency=report.consistency,
        disks=disks,
        taken_at=point.taken_at,
        node=status.node,
        node_uid=status.node_uid,
        pool=facts.spec.pool,
        pool_id=pool_id,
        listed=True,
        workload_uid=facts.uid,  # no workload here has that one
        workload_spec=facts.spec.workload,
        image_sha256=former.status(SnapshotStatus).image_sha256 if former is not None else "",
    )
    image = former.marks(SnapshotMarks).image if former is not None else ""
    return SNAPSHOT.make(
        *(point.snapshot, SnapshotSpec(of=facts.spec.of), point.received_at),
        marks=SnapshotMarks(automatic="replication", replica=facts.name, pool=facts.spec.pool, image=image),
        uid=point.snapshot_uid,
        project=envelope.project,
        creator=envelope.creator,
        status=taken,
    )


def _list_events(replica: Item, facts: ReplicaFacts, plan: ReplicaPlan) -> list[Event]:
    was, now = facts.status, plan.status
    if now.phase == "NodeLost" and was.phase != "NodeLost":
        return [Event("Warning", "NodeLost", now.message, replica.envelope.ref, SOURCE)]
    if plan.arrived is not None and not was.points:
        message = f"its first point has come, {format_bytes(plan.arrived.bytes)}"
        return [Event("Normal", "Seeded", message, replica.envelope.ref, SOURCE)]
    if was.node_uid and now.node_uid != was.node_uid:
        why = "runs the VM now" if was.node == facts.avoided else "is given up"
        message = f"node {was.node} {why}: node {now.node} gets all of it again"
        return [Event("Warning", "Reseeding", message, replica.envelope.ref, SOURCE)]
    return []
