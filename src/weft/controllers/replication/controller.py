"""Keeps replicas at linked clusters, or at other nodes of this one, as young as their RPO says: a snapshot first, then its node
sends what changed.

Reads replications, replicas, clusters, VMs, snapshots, nodes; writes replication.status with the order for the node, the spec of
replicas in this cluster, makes and deletes the snapshots that it sends, releases the finalizer "replication". A VM that was handed
over, or whose replica was promoted, it stops and marks, so that it can't be started. Woken by any of those, and by time. Nodes get
the order with the API server's answers to their reports, and report on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.node_reports import find_node_report
from weft.controllers.replication.plan import RESTING, ReplicationFacts, ReplicationPlan, Taken, plan_replication
from weft.controllers.replication.target import find_target
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus
from weft.kinds.fields.cluster.link import AUTOMATIC, LEFT, SUPERSEDED, WITNESSED, find_project_there
from weft.kinds.fields.replication.work import OWN_FIELDS, SendOrder, SendReport
from weft.kinds.node import NODES_BY_UID, NodeReport, NodeStatus
from weft.kinds.orders import ASK, SEND
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus
from weft.kinds.replica import PRIMARY, REPLICA, REPLICAS_BY_POINT, ReplicaMarks, ReplicaSpec, ReplicaStatus
from weft.kinds.replication import (
    ENDED,
    REPLICATION,
    REPLICATIONS_BY_CLUSTER,
    REPLICATIONS_BY_SNAPSHOT,
    REPLICATIONS_BY_SUBJECT,
    REPLICATIONS_BY_UID,
    REPLICATIONS_WAITING,
    WAITING,
    ReplicationActions,
    ReplicationMarks,
    ReplicationSpec,
    ReplicationStatus,
    SentPoint,
    is_local,
    subject_of,
)
from weft.kinds.snapshot import SNAPSHOT, SNAPSHOTS_BY_UID, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VmActions, VmSpec
from weft.objects.identity import cut_name, new_uid, object_key
from weft.objects.lifecycle import Phase

FINALIZER, SOURCE = "replication", "replications"


class Replications:
    name = "replications"
    kinds = ("replication", "replica", "cluster", "vm", "snapshot", "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "replication":
                return (change.key,)
            case "replica":
                if has_changed(change, _read_target) and (owner := change.item.envelope.owner) is not None:
                    return (object_key(REPLICATION.name, owner.project, owner.name),)
            case "cluster":
                if has_changed(change, _read_link):
                    return [item.key for item in view.find(REPLICATIONS_BY_CLUSTER, change.item.envelope.name)]
            case "vm":
                if has_changed(change, _replication_relevant_state):
                    return [item.key for item in view.find(REPLICATIONS_BY_SUBJECT, change.item.key)]
            case "snapshot":
                return [item.key for item in view.find(REPLICATIONS_BY_SNAPSHOT, change.item.uid)]
            case "node":
                return _route_node(view, change)
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            replication = view.get(key)
            if replication is None:
                continue
            commit, later = plan_one(view, replication, now)
            if commit is not None:
                plan.commits.append(commit)
            if later:
                plan.later[key] = later
        return plan


def _read_link(cluster: Item) -> object:
    return cluster.uid, cluster.deleting, cluster.status(ClusterStatus).phase, cluster.spec(ClusterSpec).projects


def _read_target(replica: Item) -> object:
    """State of a replica that a replication within this cluster reads."""
    status = replica.status(ReplicaStatus)
    return replica.uid, status.order is None, status.node, status.message, replica.marks(ReplicaMarks).generation


def _replication_relevant_state(workload: Item) -> object:
    marks = workload.marks(WorkloadMarks)
    is_lost = workload.status(WorkloadStatus).phase == Phase.UNKNOWN
    return (
        workload.uid,
        workload.deleting,
        marks.fenced,
        marks.departed,
        has_ended(workload),
        _has_run(workload),
        is_lost,
    )


def _has_run(workload: Item) -> bool:
    """Whether it has had a place."""
    return workload.status(WorkloadStatus).incarnation > 0


def has_ended(workload: Item) -> bool:
    """Whether it is stopped, as its present spec says."""
    status = workload.status(WorkloadStatus)
    return status.phase == Phase.STOPPED and status.observed_generation >= workload.envelope.generation


def _route_node(view: View, change: Changed) -> Iterable[str]:
    items = [item for item in (change.old, change.new) if item is not None]
    if has_changed(change, lambda node: node.status(NodeStatus).phase == "Ready"):
        return [item.key for item in view.find(REPLICATIONS_WAITING, WAITING)]
    if has_changed(change, _list_reports):
        uids = {one.uid for item in items for one in _list_reports(item)}
        return [item.key for uid in sorted(uids) for item in view.find(REPLICATIONS_BY_UID, uid)]
    return ()


def read_facts(view: View, replication: Item) -> ReplicationFacts:
    spec, status = replication.spec(ReplicationSpec), replication.status(ReplicationStatus)
    subject, project = view.get(subject_of(replication)), replication.envelope.project or ""
    cluster = view.get(object_key(CLUSTER.name, None, spec.cluster))
    there = (
        find_project_there(cluster.spec(ClusterSpec).projects, project, spec.project_there)
        if cluster is not None
        else ""
    )
    following, returns, base = _read_snapshot(view, status.next), "", ""
    if subject is not None and status.point is None and (former := find_promoted(view, subject)) is not None:
        returns, base = former[0].spec(ReplicaSpec).origin, former[1].uid
    home = following.status.node_uid if following is not None else None
    target = find_target(view, replication) if is_local(replication) else None
    facts = ReplicationFacts(
        name=replication.envelope.name,
        uid=replication.uid,
        deleting=replication.deleting,
        spec=spec,
        status=status,
        actions=replication.actions(ReplicationActions),
        guard=replication.marks(ReplicationMarks).guard,
        own_project=project,
        project=there,
        subject=subject.uid if subject is not None and not subject.deleting else "",
        cluster=cluster.status(ClusterStatus).phase if cluster is not None and not cluster.deleting else None,
        point=_read_snapshot(view, status.point),
        next=following,
        node_ready=any(node.status(NodeStatus).phase == "Ready" for node in view.find(NODES_BY_UID, home or "")),
        report=find_node_report(view, SEND, status.order),
        heard=find_node_report(view, ASK, status.ask),
        is_superseded=(said := replication.envelope.condition(WITNESSED)) is not None and said.reason == SUPERSEDED,
        is_left=(told := replication.envelope.condition(AUTOMATIC)) is not None and told.reason == LEFT,
        fenced=replication.envelope.name if _is_fenced_by(subject, replication) else "",
        departed=subject.marks(WorkloadMarks).departed if subject is not None else "",
        is_stopped=subject is not None and has_ended(subject),
        never_ran=subject is not None and not _has_run(subject),
        is_marked=subject is not None and _is_marked(view, subject),
        held=frozenset(
            one.snapshot_uid
            for one in (status.point, status.next)
            if one is not None and one.snapshot_uid and list(view.find(REPLICAS_BY_POINT, one.snapshot_uid))
        ),
        returns=returns,
        base=base,
    )
    if not is_local(replication):
        return facts
    into = target.status(ReplicaStatus) if target is not None else ReplicaStatus()
    return msgspec.structs.replace(
        facts,
        project=project,
        cluster="Linked",
        generation=target.marks(ReplicaMarks).generation if target is not None else 1,
        waits=_find_wait(subject, into),
    )


def _find_wait(subject: Item | None, into: ReplicaStatus) -> str:
    """Why a copy within this cluster gets no point now; empty if it does."""
    if subject is not None and subject.status(WorkloadStatus).phase == Phase.UNKNOWN:
        return f"{subject.status(WorkloadStatus).message or 'its node is silent'}"
    return (into.message or "no node has been chosen for the copy yet") if into.order is None else ""


def _is_fenced_by(workload: Item | None, replication: Item) -> bool:
    return (
        workload is not None
        and not workload.deleting
        and workload.marks(WorkloadMarks).fenced == replication.envelope.name
    )


def find_promoted(view: View, workload: Item) -> tuple[Item, Item] | None:
    """The replica here that the VM was promoted from, with that point's snapshot."""
    spec, project = workload.spec(VmSpec), workload.envelope.project
    for began in (workload.actions(VmActions).restore, spec.origin):
        snapshot = view.get(object_key(SNAPSHOT.name, project, began.snapshot)) if began is not None else None
        name = snapshot.marks(SnapshotMarks).replica if snapshot is not None else ""
        replica = view.get(object_key(REPLICA.name, project, name)) if name else None
        if snapshot is not None and replica is not None and _became(replica.marks(ReplicaMarks), workload):
            return replica, snapshot
    return None


def _became(replica: ReplicaMarks, workload: Item) -> bool:
    """Whether the workload is what the replica's promotion made; people may make others from its points. Of a replica that was
    promoted when that wasn't noted yet, any may be."""
    return replica.role == PRIMARY and replica.became in ("", workload.envelope.name)


def _read_snapshot(view: View, point: SentPoint | None) -> Taken | None:
    for item in view.find(SNAPSHOTS_BY_UID, point.snapshot_uid) if point is not None and point.snapshot_uid else ():
        return Taken(item.envelope.name, item.uid, item.deleting, item.status(SnapshotStatus))
    return None


def _list_reports(node: Item) -> list[SendReport]:
    orders = node.report(NodeReport).orders
    return [*orders.send, *orders.ask]


def plan_one(view: View, replication: Item, now: float) -> tuple[Commit | None, float]:
    facts = read_facts(view, replication)
    plan = plan_replication(facts, now)
    if plan.release:
        return Commit(replication.key, [let_go(replication, FINALIZER)], [unchanged(replication)]), 0.0
    draft, status = Draft(), plan.status
    if plan.begin:
        status = _make_snapshot(draft, view, replication, status, now, facts.generation or 1, final=plan.final)
    if plan.fence is not None and (subject := view.get(subject_of(replication))) is not None:
        _fence(draft, view, replication, subject, plan.fence, now)
    for uid in plan.drop:
        for item in view.find(SNAPSHOTS_BY_UID, uid):
            if not item.deleting:
                draft.change(item, deleting_since=now)
    if (target := find_target(view, replication)) is not None:
        status = msgspec.structs.replace(status, node=target.status(ReplicaStatus).node)
        _describe_to(draft, target, status.order)
    if status != facts.status:
        draft.change(replication, status=status)
    _mark_places(draft, view, replication, plan.status)
    return draft.commit(replication.key, list_events(replication, facts, plan)), plan.later


def _describe_to(draft: Draft, target: Item, order: SendOrder | None) -> None:
    """A replica in this cluster is as its source is when that sends; at another cluster the node that sends says so."""
    spec = target.spec(ReplicaSpec)
    if order is not None:
        new = msgspec.structs.replace(
            spec, **{name: order.manifest[name] for name in OWN_FIELDS if name in order.manifest}
        )
        if new != spec:
            draft.change(target, spec=new)


def _fence(draft: Draft, view: View, replication: Item, workload: Item, on: bool, now: float) -> None:
    """Stop the VM, and keep it stopped, since its copy at the other cluster is, or may become, the one that writes; or let it be
    started again. A replica that it was promoted from is over then: nobody goes on from it."""
    spec, marks, name = workload.spec(VmSpec), workload.marks(WorkloadMarks), replication.envelope.name
    if on and not marks.fenced:
        fenced = msgspec.structs.replace(marks, fenced=name)
        draft.change(workload, spec=msgspec.structs.replace(spec, run="stop"), marks=fenced)
        if (former := find_promoted(view, workload)) is not None and not former[0].deleting:
            draft.change(former[0], deleting_since=now)
    elif not on and marks.fenced == name:
        draft.change(workload, marks=msgspec.structs.replace(marks, fenced=""))


def _mark_places(draft: Draft, view: View, replication: Item, status: ReplicationStatus) -> None:
    """Have nodes that come back not boot the VM at once, while its copy may have been promoted. ``status``: of the replication from
    now on."""
    workload = view.get(subject_of(replication))
    if workload is None or workload.deleting:
        return
    others = [one for one in view.find(REPLICATIONS_BY_SUBJECT, workload.key) if one.uid != replication.uid]
    marks = has_copy(replication, status) or any(has_copy(one, one.status(ReplicationStatus)) for one in others)
    for item in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid):
        place = item.spec(AllocationSpec)
        if place.replicated is not marks and not item.deleting:
            draft.change(item, spec=msgspec.structs.replace(place, replicated=marks))


def _is_marked(view: View, workload: Item) -> bool:
    """Whether a place of it still has a mark that no replication needs."""
    if any(has_copy(one, one.status(ReplicationStatus)) for one in view.find(REPLICATIONS_BY_SUBJECT, workload.key)):
        return False
    places = view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)
    return not workload.deleting and any(one.spec(AllocationSpec).replicated and not one.deleting for one in places)


def has_copy(replication: Item, status: ReplicationStatus) -> bool:
    """Whether its replica could be promoted by people. One that takes over automatically needs no mark: nodes hold the workload.
    From one in this cluster nothing goes on before the workload has certainly ended."""
    if is_local(replication) or replication.marks(ReplicationMarks).guard:
        return False
    return status.point is not None and status.phase not in ENDED and not replication.deleting


def _make_snapshot(
    draft: Draft, view: View, replication: Item, status: ReplicationStatus, now: float, generation: int, *, final: bool
) -> ReplicationStatus:
    uid, envelope = new_uid(), replication.envelope
    subject = view.get(subject_of(replication))
    name = cut_name(envelope.name, f"-{uid[:12]}")
    image = subject.spec(VmSpec).image if subject is not None else ""
    spec = SnapshotSpec(of=replication.spec(ReplicationSpec).of)
    marks = SnapshotMarks(automatic="replication", image=image)
    draft.make(SNAPSHOT.make(name, spec, now, uid=uid, project=envelope.project, creator=envelope.creator, marks=marks))
    point = SentPoint(snapshot=name, snapshot_uid=uid, begun_at=now, generation=generation, final=final)
    return msgspec.structs.replace(status, next=point)


def list_events(replication: Item, facts: ReplicationFacts, plan: ReplicationPlan) -> list[Event]:
    was, now, ref = facts.status, plan.status, replication.envelope.ref
    if now.phase == was.phase:
        if now.phase in RESTING and now.failures and now.reason != was.reason:
            return [Event("Warning", "Interrupted", now.message, ref, SOURCE)]
        return []
    if now.phase == "Stale":
        message = f"{now.message}; {replication.spec(ReplicationSpec).of} is stopped, and can't be started here"
        return [Event("Normal" if was.phase == "HandedOver" else "Warning", now.phase, message, ref, SOURCE)]
    if now.phase == "HandedOver":
        return [Event("Normal", now.phase, now.message, ref, SOURCE)]
    if now.phase in ("Interrupted", "Failed"):
        return [Event("Warning", now.phase, now.message, ref, SOURCE)]
    if now.phase == "Behind":
        message = f"the newest point is {now.lag_seconds:g} s old; the RPO is {facts.spec.rpo:g} s"
        return [Event("Warning", "Behind", message, ref, SOURCE)]
    if now.phase == "Replicating":
        return [Event("Normal", "Replicating", f"point {now.point.number if now.point else 0} is there", ref, SOURCE)]
    return []
