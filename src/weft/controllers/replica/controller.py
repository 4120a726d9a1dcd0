"""Has the points of replicas taken in: chooses their node, orders the next point, makes a Snapshot of each that came, and removes
old ones.

Reads replicas, snapshots, nodes; writes replica.status with the order for its node, makes and deletes the snapshots of points,
releases the finalizer "replica". Woken by any of those. Nodes get the order with the API server's answers to their reports, and
report on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.replica.plan import Place, ReplicaFacts, ReplicaPlan, plan_replica
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.fields.replication.work import find_receive
from weft.kinds.node import NODES_BY_UID, NodeReport, NodeStatus
from weft.kinds.recovery_plan import RECOVERY_PLANS_BY_SNAPSHOT
from weft.kinds.replica import REPLICAS_BY_NODE, REPLICAS_BY_POINT, REPLICAS_BY_UID, Point, ReplicaSpec, ReplicaStatus
from weft.kinds.snapshot import SNAPSHOT, SNAPSHOTS_BY_UID, SnapshotDisk, SnapshotSpec, SnapshotStatus
from weft.objects.envelope import Envelope
from weft.objects.identity import new_uid
from weft.objects.quantity import format_bytes

FINALIZER, SOURCE = "replica", "replicas"
RETRY_SECONDS = 30.0  # while its node isn't Ready, or none has the capacity


class Replicas:
    name = "replicas"
    kinds = ("replica", "snapshot", "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "replica":
                return (change.key,)
            case "snapshot":
                if has_changed(change, lambda item: (item.uid, item.deleting, item.status(SnapshotStatus).phase)):
                    return [item.key for item in view.find(REPLICAS_BY_POINT, change.item.uid)]
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


def _route_node(view: View, change: Changed) -> Iterable[str]:
    items = [item for item in (change.old, change.new) if item is not None]
    if has_changed(change, lambda node: (node.uid, node.status(NodeStatus).phase)):
        waiting = [item.key for item in view.of_kind("replica").values() if not item.status(ReplicaStatus).node_uid]
        return [*waiting, *(one.key for item in items for one in view.find(REPLICAS_BY_NODE, item.uid))]
    if has_changed(change, lambda node: (node.report(NodeReport).receives, node.report(NodeReport).snapshots)):
        uids = {one.uid for item in items for one in item.report(NodeReport).receives}
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
            report = find_receive(node.report(NodeReport).receives, status.order)
            is_listed = any(one.uid == status.order.snapshot for one in node.report(NodeReport).snapshots)
    return ReplicaFacts(
        name=replica.envelope.name,
        uid=replica.uid,
        deleting=replica.deleting,
        spec=spec,
        status=status,
        snapshots=frozenset(usable),
        pinned=frozenset(
            one.snapshot_uid for one in status.points if view.find(RECOVERY_PLANS_BY_SNAPSHOT, one.snapshot_uid)
        ),
        held=bool(found),
        places=list_places(view, spec.pool),
        node_exists=bool(nodes),
        is_autonomous=bool(nodes) and nodes[0].status(NodeStatus).phase == "Autonomous",
        report=report,
        is_listed=is_listed,
        fresh_uid=new_uid(),
    )


def list_places(view: View, pool: str) -> list[Place]:
    """The nodes that are Ready and have the pool."""
    return [
        Place(node.envelope.name, node.uid, one.free)
        for node in view.of_kind("node").values()
        if node.status(NodeStatus).phase == "Ready" and not node.deleting
        for one in node.report(NodeReport).pools
        if one.name == pool
    ]


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
    return draft.commit(replica.key, _list_events(replica, facts, plan))


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
    )
    spec = SnapshotSpec(of=facts.spec.of, automatic="replication", replica=facts.name, pool=facts.spec.pool)
    return SNAPSHOT.make(
        *(point.snapshot, spec, point.received_at),
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
        message = f"node {was.node} is given up: node {now.node} gets all of it again"
        return [Event("Warning", "Reseeding", message, replica.envelope.ref, SOURCE)]
    return []
