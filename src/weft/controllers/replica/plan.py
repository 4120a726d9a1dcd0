"""Plan a replica's next step from the facts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from weft.kinds.fields.replication.work import ReceiveOrder, ReceiveReport
from weft.kinds.replica import (
    NODE_LOST,
    PRIMARY,
    RESTORE_FAILED,
    Point,
    ReplicaMarks,
    ReplicaSpec,
    ReplicaStatus,
    name_points,
)
from weft.objects.quantity import format_bytes

RESEED_SECONDS = 300.0  # a node that has been away for this time is given up, if there is another


class CandidateNode(msgspec.Struct, frozen=True):
    """A node that is Ready and has the replica's pool."""

    name: str
    uid: str
    free: int  # bytes


class Returned(msgspec.Struct, frozen=True):
    """The VM here that a replica continues the disks of, since it was the one that wrote."""

    vm: str
    vm_uid: str
    replication: str  # name of the one that left it to the other cluster
    is_fenced: bool  # it is stopped, and can't be started
    disks: frozenset[str] = frozenset()  # of its disks, the keys in its node's records
    point: Point | None = None  # that both sides have; None: it isn't here any more
    node: str = ""  # where that is
    node_uid: str = ""
    asked: str = ""  # name of the snapshot that the VM was last told to go back to
    has_gone: bool = False  # it has
    trouble: str = ""  # why it can't


class ReplicaFacts(msgspec.Struct, frozen=True):
    name: str
    uid: str
    deleting: bool
    spec: ReplicaSpec
    marks: ReplicaMarks
    status: ReplicaStatus
    snapshots: frozenset[str]  # uids of its points' snapshots that are there and can be used
    pinned: frozenset[str] = frozenset()  # of these, what is needed: they stay
    held: bool = False  # any of its points' snapshots is there
    places: Sequence[CandidateNode] = ()
    is_local: bool = False  # of a VM in this cluster
    node_exists: bool = False  # the one that its points are on
    avoided: str = ""  # node that its source in this cluster is on, which has no copy then
    is_autonomous: bool = False  # that one is silent, and within its autonomy
    report: ReceiveReport | None = None  # on its order
    is_listed: bool = False  # its node lists the point that the report is about
    fresh_uid: str = ""  # for the next point's snapshot
    returned: Returned | None = None
    keys: Mapping[
        str, frozenset[str]
    ] = {}  # of the points' disks in the node's records, by uid of the points' snapshots


class ReplicaPlan(msgspec.Struct, frozen=True):
    status: ReplicaStatus
    arrived: Point | None = None  # a point that gets a Snapshot
    drop: Sequence[str] = ()  # uids of snapshots that go
    release: bool = False
    go_back: Point | None = None  # the VM that it continues goes back to this one
    start: bool = False  # it has, and starts


def plan_replica(facts: ReplicaFacts, now: float) -> ReplicaPlan:
    status = facts.status
    if facts.deleting:
        return ReplicaPlan(
            replace(status, phase="Deleting", order=None),
            drop=[one.snapshot_uid for one in status.points],
            release=not facts.held,
        )
    returned = facts.returned
    if returned is not None and status.order is None and not status.points and facts.marks.role != PRIMARY:
        if not returned.is_fenced:
            message = (
                f"waits until vm/{returned.vm} is stopped here, which replication/{returned.replication} finds out"
            )
            return ReplicaPlan(replace(status, phase="Pending", reason="stillWrites", message=message))
        if returned.point is not None:
            status = replace(status, points=[returned.point], node=returned.node, node_uid=returned.node_uid)
            facts = replace(facts, snapshots=facts.snapshots | {returned.point.snapshot_uid})
    points, arrived = [one for one in status.points if one.snapshot_uid in facts.snapshots], None
    former = [one for one in points if facts.is_local and one.generation != facts.marks.generation]  # before it went on
    report, order = facts.report, status.order
    if report is not None and order is not None and report.phase == "done" and facts.is_listed:
        arrived = make_point(facts, order, report, now)
        points.append(arrived)
    over = [*points[: -facts.spec.keep], *former]
    drop = [uid for uid in dict.fromkeys(one.snapshot_uid for one in over) if uid not in facts.pinned]
    points = [one for one in points if one.snapshot_uid not in drop]
    status = replace(status, points=points)
    if facts.marks.role != PRIMARY:
        vm = (
            (returned.vm, returned.vm_uid) if returned is not None and _continues(facts, returned, points) else ("", "")
        )
        status = replace(status, vm=vm[0], vm_uid=vm[1])
    status = _choose_node(facts, status, now)
    status = replace(status, order=_plan_order(facts, status, arrived is not None))
    plan = ReplicaPlan(_describe(facts, status), arrived, drop)
    if facts.marks.role == PRIMARY and facts.marks.promoted and returned is not None and returned.is_fenced:
        point = next((one for one in points if one.number == facts.marks.promoted), None)
        if point is not None:
            return _plan_start(returned, point, replace(plan, status=replace(status, phase="Standby")))
    return plan


def _plan_start(returned: Returned, point: Point, plan: ReplicaPlan) -> ReplicaPlan:
    """A promotion of one that continues a VM: its disks go back first, and it starts once they have."""
    if returned.asked != point.snapshot:
        return replace(plan, go_back=point)
    if returned.trouble:
        stuck = f"vm/{returned.vm} doesn't start, since its disks can't go back to the point: {returned.trouble}"
        return replace(plan, status=replace(plan.status, reason=RESTORE_FAILED, message=stuck))
    return replace(plan, start=returned.has_gone)


def _continues(facts: ReplicaFacts, returned: Returned, points: Sequence[Point]) -> bool:
    """Whether the VM here can go back to each of the points: they have all its disks, as it calls them."""
    if not returned.is_fenced or not points:
        return False
    arrived = frozenset(disk.key for disk in facts.report.disks.values()) if facts.report is not None else frozenset()
    return all(returned.disks <= facts.keys.get(one.snapshot_uid, arrived) for one in points)


def make_point(facts: ReplicaFacts, order: ReceiveOrder, report: ReceiveReport, now: float) -> Point:
    return Point(
        number=order.number,
        snapshot=f"{name_points(facts.name)}{order.snapshot[:12]}",
        snapshot_uid=order.snapshot,
        source=report.source,
        generation=order.generation,
        taken_at=report.taken_at,
        received_at=now,
        age_seconds=report.age_seconds,
        bytes=report.bytes,
        final=report.final,
    )


def _choose_node(facts: ReplicaFacts, status: ReplicaStatus, now: float) -> ReplicaStatus:
    if any(place.uid == status.node_uid for place in facts.places):
        return replace(status, lost_at=None, reason="", message="")
    if status.node_uid and facts.node_exists and status.node != facts.avoided:
        since = status.lost_at if status.lost_at is not None and status.lost_at <= now else now
        status = replace(
            status,
            lost_at=since,
            reason="nodeNotReady",
            message=f"node {status.node}, which has its points, is not ready",
        )
        if facts.is_autonomous or now - since < RESEED_SECONDS or facts.marks.role == PRIMARY:
            return status
    needed = sum(facts.spec.disks.values())
    fits = [place for place in facts.places if place.free >= needed]
    if not fits or facts.marks.role == PRIMARY:
        other = "other " if facts.is_local else ""
        most = max((place.free for place in facts.places), default=0)
        lacks = f"{format_bytes(needed)} free in storage pool" if facts.places else "storage pool"
        waits = f"no {other}ready node has {lacks} {facts.spec.pool}"
        waits += f"; the most is {format_bytes(most)}" if facts.places else ""
        if status.node and status.node == facts.avoided:
            message = f"the VM has come to node {status.node}, which has its points; {waits}"
            return replace(status, reason="sameNode", message=message)
        lost = bool(status.node_uid) and not facts.node_exists
        return replace(
            status,
            reason=NODE_LOST if lost else status.reason if status.node_uid else "noPlace",
            message=f"node {status.node}, which had its points, is gone; {waits}"
            if lost
            else status.message
            if status.node_uid
            else waits,
        )
    best = max(fits, key=lambda place: (place.free, place.name))
    return replace(status, node=best.name, node_uid=best.uid, lost_at=None, reason="", message="")


def _plan_order(facts: ReplicaFacts, status: ReplicaStatus, has_arrived: bool) -> ReceiveOrder | None:
    """The order for the next point, which is the same one until that has come or its node is another."""
    if not status.node_uid or status.node == facts.avoided:
        return None
    former = status.order
    here = [one for one in status.points if former is None or former.node_uid == status.node_uid]
    here = [one for one in here if not facts.is_local or one.generation == facts.marks.generation]
    newest = here[-1] if here else None
    goes_on = former is not None and former.node_uid == status.node_uid and not has_arrived
    return ReceiveOrder(
        uid=facts.uid,
        node_uid=status.node_uid,
        generation=facts.marks.generation,
        origin=facts.spec.origin,
        number=max((one.number for one in status.points), default=former.number - 1 if former is not None else 0) + 1,
        snapshot=former.snapshot if goes_on and former is not None else facts.fresh_uid,
        pool=facts.spec.pool,
        parent=newest.snapshot_uid if newest is not None else "",
        parent_source=newest.source if newest is not None else "",
        disks=facts.spec.disks,
    )


def _describe(facts: ReplicaFacts, status: ReplicaStatus) -> ReplicaStatus:
    if facts.marks.role == PRIMARY:
        return replace(status, phase="Promoted")
    if not status.node_uid:
        return replace(status, phase="Pending")
    if status.reason:
        return replace(status, phase="NodeLost")
    receiving = facts.report is not None and facts.report.phase == "receiving"
    return replace(status, phase="Standby" if status.points else "Seeding" if receiving else "Pending")
