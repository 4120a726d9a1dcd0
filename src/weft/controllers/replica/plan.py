"""What a replica needs next, from what is known of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from weft.kinds.fields.replication.work import ReceiveOrder, ReceiveReport
from weft.kinds.replica import PRIMARY, Point, ReplicaSpec, ReplicaStatus
from weft.objects.quantity import format_bytes

RESEED_SECONDS = 300.0  # a node that has been away for this time is given up, if there is another


class Place(msgspec.Struct, frozen=True):
    """A node that is Ready and has the replica's pool."""

    name: str
    uid: str
    free: int  # bytes


class ReplicaFacts(msgspec.Struct, frozen=True):
    name: str
    uid: str
    deleting: bool
    spec: ReplicaSpec
    status: ReplicaStatus
    snapshots: frozenset[str]  # uids of its points' snapshots that are there and can be used
    pinned: frozenset[str] = frozenset()  # of these, what the run of a recovery plan needs: they stay
    held: bool = False  # any of its points' snapshots is there
    places: Sequence[Place] = ()
    node_exists: bool = False  # the one that its points are on
    is_autonomous: bool = False  # that one is silent, and within its autonomy
    report: ReceiveReport | None = None  # on its order
    is_listed: bool = False  # its node lists the point that the report is about
    fresh_uid: str = ""  # for the next point's snapshot


class ReplicaPlan(msgspec.Struct, frozen=True):
    status: ReplicaStatus
    arrived: Point | None = None  # a point that gets a Snapshot
    drop: Sequence[str] = ()  # uids of snapshots that go
    release: bool = False


def plan_replica(facts: ReplicaFacts, now: float) -> ReplicaPlan:
    status = facts.status
    if facts.deleting:
        return ReplicaPlan(
            replace(status, phase="Deleting", order=None),
            drop=[one.snapshot_uid for one in status.points],
            release=not facts.held,
        )
    points, arrived = [one for one in status.points if one.snapshot_uid in facts.snapshots], None
    report, order = facts.report, status.order
    if report is not None and order is not None and report.phase == "done" and facts.is_listed:
        arrived = make_point(facts, order, report, now)
        points.append(arrived)
    drop = [one.snapshot_uid for one in points[: -facts.spec.keep] if one.snapshot_uid not in facts.pinned]
    points = [one for one in points if one.snapshot_uid not in drop]
    status = replace(status, points=points)
    status = _choose_node(facts, status, now)
    status = replace(status, order=_plan_order(facts, status, arrived is not None))
    return ReplicaPlan(_describe(facts, status), arrived, drop)


def make_point(facts: ReplicaFacts, order: ReceiveOrder, report: ReceiveReport, now: float) -> Point:
    return Point(
        number=order.number,
        snapshot=f"{facts.name[:40]}-point-{order.snapshot[:12]}",
        snapshot_uid=order.snapshot,
        source=report.source,
        generation=order.generation,
        taken_at=report.taken_at,
        received_at=now,
        age_seconds=report.age_seconds,
        bytes=report.bytes,
    )


def _choose_node(facts: ReplicaFacts, status: ReplicaStatus, now: float) -> ReplicaStatus:
    if any(place.uid == status.node_uid for place in facts.places):
        return replace(status, lost_at=None, reason="", message="")
    if status.node_uid and facts.node_exists:
        since = status.lost_at if status.lost_at is not None and status.lost_at <= now else now
        status = replace(
            status,
            lost_at=since,
            reason="nodeNotReady",
            message=f"node {status.node}, which has its points, is not ready",
        )
        if facts.is_autonomous or now - since < RESEED_SECONDS or facts.spec.role == PRIMARY:
            return status
    needed = sum(facts.spec.disks.values())
    fits = [place for place in facts.places if place.free >= needed]
    if not fits or facts.spec.role == PRIMARY:
        most = max((place.free for place in facts.places), default=0)
        waits = (
            f"no ready node has {format_bytes(needed)} free in storage pool {facts.spec.pool}; the most is {format_bytes(most)}"
            if facts.places
            else f"no ready node has storage pool {facts.spec.pool}"
        )
        lost = bool(status.node_uid) and not facts.node_exists
        return replace(
            status,
            reason="nodeLost" if lost else status.reason if status.node_uid else "noPlace",
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
    if not status.node_uid:
        return None
    former = status.order
    here = [one for one in status.points if former is None or former.node_uid == status.node_uid]
    newest = here[-1] if here else None
    goes_on = former is not None and former.node_uid == status.node_uid and not has_arrived
    return ReceiveOrder(
        uid=facts.uid,
        node_uid=status.node_uid,
        generation=facts.spec.generation,
        origin=facts.spec.origin,
        number=max((one.number for one in status.points), default=former.number - 1 if former is not None else 0) + 1,
        snapshot=former.snapshot if goes_on and former is not None else facts.fresh_uid,
        pool=facts.spec.pool,
        parent=newest.snapshot_uid if newest is not None else "",
        parent_source=newest.source if newest is not None else "",
        disks=facts.spec.disks,
    )


def _describe(facts: ReplicaFacts, status: ReplicaStatus) -> ReplicaStatus:
    if facts.spec.role == PRIMARY:
        return replace(status, phase="Promoted")
    if not status.node_uid:
        return replace(status, phase="Pending")
    if status.reason:
        return replace(status, phase="NodeLost")
    receiving = facts.report is not None and facts.report.phase == "receiving"
    return replace(status, phase="Standby" if status.points else "Seeding" if receiving else "Pending")
