"""Plan a replication's next step from the facts. Pure.

The age of the newest point is counted from the moment when this cluster ordered its snapshot, by this cluster's clock, until now or
until the next point is complete: so it is never shown younger than it is, and no two clocks are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from weft.kinds.fields.replication.work import AskOrder, ReplicationOrder, SendOrder, SendReport
from weft.kinds.replication import (
    LINK_REFUSED,
    NEVER_RAN,
    NO_PLACE,
    NOT_LINKED,
    REFUSALS,
    AgeSpan,
    ReplicationActions,
    ReplicationSpec,
    ReplicationStatus,
)
from weft.kinds.snapshot import SnapshotStatus
from weft.objects.quantity import format_bytes, format_duration

BEGIN_SHARE = 1 / 3  # of the RPO: at that age of the newest point, the next one begins
ALARM_SHARE = 0.8  # of the RPO: at that age the replication is Behind
ASK_SECONDS = 30.0  # a replica that gets no point for longer is asked after meanwhile
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS, SLOW_RETRY_SECONDS = 2.0, 30.0, 300.0
RETRY_SHARE = 1 / 12  # of the RPO: no pause is longer while the newest point isn't older than the RPO
HISTORY_SECONDS, SPAN_SECONDS = 3600.0, 300.0
# Refusals that only people end.
_STALE, _GONE = "staleGeneration", "replicaGone"
RESTING = ("Paused", "HandedOver")  # phases in which nothing is sent


_RELEASING = "waits for {} or the witness to answer that it doesn't take over automatically any more"
_ALONE = (
    "the VM runs alone, but its copy at {0} may take over until {0} or the witness has answered that it doesn't: start one of "
    "them; if both are gone for good: weft cluster witness {0} --off"
)


class Taken(msgspec.Struct, frozen=True):
    """A snapshot of it."""

    name: str
    uid: str
    deleting: bool
    status: SnapshotStatus


class ReplicationFacts(msgspec.Struct, frozen=True):
    name: str
    uid: str
    deleting: bool
    spec: ReplicationSpec
    status: ReplicationStatus
    actions: ReplicationActions = msgspec.field(default_factory=ReplicationActions)
    guard: str = ""  # of its marks
    own_project: str = ""
    project: str = ""  # there; "": the link has none for this one, and nothing is sent
    subject: str = ""  # uid of the VM; "": it is gone
    cluster: str | None = None  # the linked cluster's phase; None: there is no such cluster
    point: Taken | None = None  # the snapshot of the replica's newest point
    next: Taken | None = None  # of the one under way
    node_ready: bool = False  # that of ``next``
    fenced: str = ""  # the VM was left to another cluster by this replication
    departed: str = ""  # where the VM migrated to: CLUSTER/PROJECT/NAME
    is_stopped: bool = False  # the VM has ended since it was left
    never_ran: bool = False  # the VM has had no place yet, so that it has no disk
    is_marked: bool = False  # its places still say that there may be a copy, which isn't so
    held: frozenset[str] = frozenset()  # of its snapshots, uids of those that a replica here has as points
    returns: str = ""  # uid of the replication at the other cluster whose way this one goes back
    base: str = ""  # then uid of the snapshot here that the VM began from, a copy of one there
    report: SendReport | None = None  # on the order
    is_superseded: bool = False  # the witness knows that the replica was promoted
    is_left: bool = False  # the other cluster said so to this one's controllers
    heard: SendReport | None = None  # on the question whether it was promoted
    generation: int = 0  # of the replica in this cluster; 0: it is at another one, which says so
    waits: str = ""  # why the replica in this cluster takes no point now


class ReplicationPlan(msgspec.Struct, frozen=True):
    status: ReplicationStatus
    begin: bool = False  # make a snapshot: the status has none for it yet
    final: bool = False  # that is of the VM which was left
    fence: bool | None = None  # stop the VM and keep it stopped, or let it be started again
    drop: Sequence[str] = ()  # uids of snapshots that go
    release: bool = False
    later: float = 0.0  # seconds until it is planned again; 0: once something changes


def plan_replication(facts: ReplicationFacts, now: float) -> ReplicationPlan:
    status, spec = facts.status, facts.spec
    own = [one for one in (facts.point, facts.next) if one is not None and one.uid not in facts.held]
    mine = [one.uid for one in own if not one.deleting]
    if facts.deleting:
        leaving = replace(status, phase="Deleting", order=None, ask=None)
        if facts.guard or facts.actions.alone:
            message = (_RELEASING if facts.guard else _ALONE).format(spec.cluster)
            waits = replace(leaving, reason="guarded", message=message)
            return ReplicationPlan(waits, fence=True if facts.is_left and not facts.fenced else None)
        return ReplicationPlan(
            leaving,
            drop=mine,
            release=not own and not facts.fenced and not facts.is_marked,
            fence=False if facts.fenced else None,
        )
    if not facts.subject or status.workload_uid not in ("", facts.subject):
        gone = "is gone" if not facts.subject else "is another VM than the one that was replicated"
        ended = replace(status, point=None, next=None, order=None, ask=None, phase="Failed", reason="vmGone")
        return ReplicationPlan(
            replace(ended, message=f"{spec.of} {gone}; its replica is still at {spec.cluster}"), drop=mine
        )
    if facts.departed:
        message = f"{spec.of} migrated to {facts.departed}: replicate it from there"
        departed = replace(status, next=None, order=None, ask=None, phase="Failed", reason="departed", message=message)
        return ReplicationPlan(departed, drop=_of(facts.next))
    if facts.generation and any(
        one.generation != facts.generation for one in (status.point, status.next) if one is not None
    ):
        # It went on from the replica on another node: what the node before has is of no use, and counts for nothing.
        again = ReplicationStatus(workload_uid=facts.subject, attempt=status.attempt, rpo_history=status.rpo_history)
        return _show(replace(facts, status=again), ReplicationPlan(again, drop=mine, later=0.1), now)
    if (facts.is_left or (facts.is_superseded and facts.cluster != "Linked")) and status.reason != _STALE:
        # The witness counts only without a line: over one that works the replica says it.
        who = "the other cluster" if facts.is_left else "the witness"
        message = f"{who} says that the replica at {spec.cluster} was promoted: the VM that writes is there"
        status = replace(status, failures=max(1, status.failures), reason=_STALE, message=message)
    if status.failures and status.reason == _STALE:
        lost = replace(status, phase="Stale", next=None, order=None, ask=None, progress=0.0)
        return ReplicationPlan(lost, drop=_of(facts.next), fence=None if facts.fenced else True)
    if facts.heard is not None and facts.heard.phase == "failed":
        failed = _fail(facts, facts.heard.reason, facts.heard.message, now)
        if status.phase in RESTING and facts.heard.reason != _STALE:  # it sends nothing, so nothing is interrupted
            return replace(failed, status=replace(failed.status, phase=status.phase))
        return _show(facts, failed, now)
    if (facts.cluster is None or not facts.project or spec.paused) and (came := _find_arrived(facts)) is not None:
        return _show(facts, _finish(facts, came, now), now)
    if facts.cluster is None:
        waits = replace(status, phase="Pending", reason="clusterMissing", message=f"there is no cluster/{spec.cluster}")
        return ReplicationPlan(replace(waits, next=None, order=None, ask=None), drop=_of(facts.next))
    if not facts.project:
        phase = status.phase if facts.fenced else "Pending"
        waits = replace(status, phase=phase, reason=NOT_LINKED, message=_explain_not_linked(facts))
        return ReplicationPlan(replace(waits, next=None, order=None, ask=None), drop=_of(facts.next))
    if spec.paused:
        rest = _rest(facts, replace(status, phase="Paused", lag_seconds=None), "", now)
        if not facts.guard:
            return rest
        return replace(rest, status=replace(rest.status, reason="guarded", message=_RELEASING.format(spec.cluster)))
    if facts.actions.handover and facts.guard and not facts.fenced:
        waits = replace(status, phase="HandingOver", reason="guarded", message=_RELEASING.format(spec.cluster))
        return ReplicationPlan(waits)
    if facts.actions.handover and (facts.fenced or (facts.cluster == "Linked" and not status.failures)):
        return _hand_over(facts, now)  # else the VM runs on, since its last point couldn't be sent now
    if facts.never_ran and status.point is None and status.order is None:
        message = f"{spec.of} has not run yet, so it has no disk: the first point is taken once it runs"
        waits = replace(status, phase="Pending", next=None, progress=0.0, reason=NEVER_RAN, message=message)
        return ReplicationPlan(waits, drop=_of(facts.next))
    if facts.waits and _find_arrived(facts) is None:
        waits = replace(status, next=None, order=None, progress=0.0, reason=NO_PLACE, message=facts.waits)
        return _show(facts, ReplicationPlan(waits, drop=_of(facts.next)), now)
    if status.next is not None:
        return _show(facts, _follow(facts, now), now)
    if status.reason in (NEVER_RAN, NO_PLACE):
        status = replace(status, reason="", message="")
        facts = replace(facts, status=status)
    if facts.cluster == "Refused":  # a try would be refused too, and the next one would come late once this is over
        message = f"{spec.cluster} refuses this cluster; weft cluster describe {spec.cluster} says why"
        failures = max(1, status.failures)
        waits = replace(status, failures=failures, retry_at=0.0, reason=LINK_REFUSED, message=message, ask=None)
        return _show(facts, ReplicationPlan(waits), now)
    if facts.fenced and not status.told_final:
        return replace(_show(facts, _begin_if_due(facts, now), now), fence=False)  # the replica has heard of it
    return _show(facts, _begin_if_due(facts, now), now)


def _explain_not_linked(facts: ReplicationFacts) -> str:
    west, there = facts.spec.cluster, facts.spec.project_there
    wanted = f"project {there} there for project {facts.own_project}" if there else f"project {facts.own_project}"
    return (
        f"the link with cluster {west} is not for {wanted}, so nothing is sent; an administrator gives a link its projects: "
        f"weft cluster set {west} --projects HERE=THERE"
    )


def _hand_over(facts: ReplicationFacts, now: float) -> ReplicationPlan:
    """The VM stops first; what it wrote until then goes as the last point."""
    status, spec = facts.status, facts.spec
    if not facts.fenced:
        return ReplicationPlan(replace(status, phase="HandingOver"), fence=True)
    if status.point is not None and status.point.final:
        message = f"all that it wrote is at {spec.cluster}; there: weft replica promote {spec.replica or facts.name}"
        return _rest(facts, replace(status, phase="HandedOver", lag_seconds=None), message, now)
    if status.next is not None and not status.next.final:  # it was begun while the VM ran
        if (came := _find_arrived(facts)) is not None:
            plan = _finish(facts, came, now)
            return replace(plan, status=replace(plan.status, phase="HandingOver"))
        return ReplicationPlan(replace(status, phase="HandingOver", next=None, order=None), drop=_of(facts.next))
    if status.next is not None:
        plan = _follow(facts, now)
    elif not facts.is_stopped:
        waits = replace(status, phase="HandingOver", reason="stopping", message=f"waits until {spec.of} has ended")
        return ReplicationPlan(waits)
    elif status.retry_at > now and status.failures:
        plan = ReplicationPlan(status, later=min(status.retry_at - now, spec.rpo))
    else:
        plan = ReplicationPlan(
            replace(status, progress=0.0, reason="", message="", told_final=True), begin=True, final=True
        )
    return replace(plan, status=replace(plan.status, phase="HandingOver"))


def _find_arrived(facts: ReplicationFacts) -> SendReport | None:
    """The report on the point under way, if the replica has that: what follows goes on from it, whatever is wanted meanwhile."""
    report = facts.report
    return report if facts.status.next is not None and report is not None and report.phase == "done" else None


def _rest(facts: ReplicationFacts, status: ReplicationStatus, message: str, now: float) -> ReplicationPlan:
    """Nothing is sent. A promotion is heard of all the same."""
    drop, status = _of(facts.next), replace(status, next=None, order=None)
    if not (status.failures and status.reason == _GONE):
        return ReplicationPlan(_ask_after(facts, replace(status, reason="", message=message)), drop=drop)
    if status.retry_at > now:
        return ReplicationPlan(replace(status, ask=None), drop=drop, later=status.retry_at - now)
    return ReplicationPlan(_ask_after(facts, status), drop=drop)


def _ask_after(facts: ReplicationFacts, status: ReplicationStatus) -> ReplicationStatus:
    """Order the node that has the newest point to ask whether the replica was promoted."""
    node_uid = (facts.point.status.node_uid or "") if facts.point is not None and not facts.point.deleting else ""
    if status.point is None or not node_uid or facts.generation:
        return replace(status, ask=None)
    if status.ask is not None and status.ask.node_uid == node_uid and _leads_there(facts, status.ask):
        return status
    attempt = status.attempt + 1
    return replace(status, attempt=attempt, ask=AskOrder(**_address(facts, node_uid, attempt)))


def _of(taken: Taken | None) -> list[str]:
    return [taken.uid] if taken is not None and not taken.deleting else []


def _begin_if_due(facts: ReplicationFacts, now: float) -> ReplicationPlan:
    status = facts.status
    if status.point is not None and (facts.point is None or facts.point.deleting):
        status = replace(status, point=replace(status.point, snapshot_uid="", snapshot=""))  # the next one is whole
    due = 0.0
    if status.point is not None and not status.told_final:
        due = status.point.begun_at + facts.spec.rpo * BEGIN_SHARE - now
    waits = max(due, status.retry_at - now)
    waits = min(waits, facts.spec.rpo)  # a clock that was set back doesn't stop it
    if waits > 0:
        asks = waits > ASK_SECONDS and not status.failures
        return ReplicationPlan(_ask_after(facts, status) if asks else status, later=waits)
    return ReplicationPlan(replace(status, workload_uid=facts.subject, progress=0.0), begin=True)


def _follow(facts: ReplicationFacts, now: float) -> ReplicationPlan:
    """The point under way: its snapshot, then its way to the replica."""
    status, taken, report = facts.status, facts.next, facts.report
    assert status.next is not None
    if report is not None and report.phase == "done":
        return _finish(facts, report, now)
    if taken is None or taken.deleting:
        return _fail(facts, "snapshotGone", "its snapshot was deleted before it was sent", now)
    if taken.status.phase == "Unavailable":
        return _fail(facts, "snapshotGone", f"its snapshot can't be sent: {taken.status.message}", now)
    if taken.status.phase == "Failed":
        reason = taken.status.reason or "snapshotFailed"
        return _fail(facts, reason, f"no snapshot could be taken: {taken.status.message}", now)
    if report is not None and report.phase == "failed":
        return _fail(facts, report.reason or "streamLost", report.message, now)
    if taken.status.phase != "Ready":
        return ReplicationPlan(status)
    order = status.order
    is_same = order is not None and order.snapshot == taken.uid and order.node_uid == (taken.status.node_uid or "")
    if order is None or not is_same or not _leads_there(facts, order):
        if not facts.node_ready:
            return ReplicationPlan(replace(status, order=None))
        attempt = status.attempt + 1
        order = _order(facts, taken, attempt, now)
        return ReplicationPlan(replace(status, attempt=attempt, order=order, ask=None))
    share = report.bytes / report.total if report is not None and report.total else 0.0
    return ReplicationPlan(replace(status, progress=round(min(share, 1.0), 2)))


def _leads_there(facts: ReplicationFacts, order: ReplicationOrder) -> bool:
    """Whether the order is for the project that the link has now."""
    return (order.own_project, order.project) == (facts.own_project, facts.project)


def _address(facts: ReplicationFacts, node_uid: str, attempt: int) -> dict[str, Any]:
    """Address of an order: which it is, for whom, and the replica that it names."""
    return {
        "uid": facts.uid,
        "node_uid": node_uid,
        "attempt": attempt,
        "cluster": facts.spec.cluster,
        "own_project": facts.own_project,
        "project": facts.project,
        "replica": facts.spec.replica or facts.name,
    }


def _order(facts: ReplicationFacts, taken: Taken, attempt: int, now: float) -> SendOrder:
    status = facts.status
    assert status.next is not None
    disks = taken.status.disks
    return SendOrder(
        **_address(facts, taken.status.node_uid or "", attempt),
        manifest=describe_replica(facts, taken),
        snapshot=taken.uid,
        since=status.point.snapshot_uid if status.point is not None else facts.base,
        generation=status.next.generation,
        disks={name: disk.key for name, disk in disks.items()},
        image_sha256=taken.status.image_sha256,
        taken_at=taken.status.taken_at or 0.0,
        consistency=taken.status.consistency,
        age_seconds=max(0.0, now - status.next.begun_at),
        begun_at=status.next.begun_at,
        final=status.next.final,
        has_points=status.point is not None,
        confirms=status.told_final and not status.next.final,
    )


def describe_replica(facts: ReplicationFacts, taken: Taken) -> dict[str, Any]:
    """The spec of the replica."""
    return {
        "of": facts.spec.of,
        "origin": facts.uid,
        "workload": {key: value for key, value in taken.status.workload_spec.items() if key != "guard"},
        "disks": {name: disk.size for name, disk in taken.status.disks.items()},
        "rpo": facts.spec.rpo,
        "keep": facts.spec.keep,
        "pool": facts.spec.pool,
        **({"returns": facts.returns} if facts.returns else {}),
    }


def _finish(facts: ReplicationFacts, report: SendReport, now: float) -> ReplicationPlan:
    status = facts.status
    assert status.next is not None
    former, cycle = status.point, max(0.0, now - status.next.begun_at)
    point = replace(
        status.next,
        number=report.number,
        taken_at=status.order.taken_at if status.order is not None else 0.0,
    )
    ended = replace(
        status,
        point=point,
        next=None,
        order=None,
        ask=None,
        told_final=status.next.final,
        failures=0,
        retry_at=0.0,
        cycle_seconds=round(cycle, 1),
        transfer_seconds=round(report.seconds, 1),
        bytes=report.bytes,
        progress=0.0,
        reason="",
        message="",
    )
    if former is not None:
        ended = note_age(ended, now - former.begun_at, now)
        if not report.is_whole and cycle > facts.spec.rpo / 2:
            message = f"{_describe_cycle(cycle, report)}: too long for an RPO of {format_duration(facts.spec.rpo)}"
            ended = replace(ended, reason="rpoUnreachable", message=message)
    return ReplicationPlan(ended, drop=[one for one in _of(facts.point) if one not in facts.held])


def _describe_cycle(cycle: float, report: SendReport) -> str:
    took, sending = f"the last point took {format_duration(round(cycle))}", round(report.seconds)
    if sending < 1:
        return f"{took}, less than 1s of that to send it; the rest was its snapshot, and waiting for nodes"
    rate = format_bytes(int(report.bytes / report.seconds))
    return f"{took}, {format_duration(sending)} of that to send it at {rate}/s"


def note_age(status: ReplicationStatus, age: float, now: float) -> ReplicationStatus:
    """The newest point had this age; of the last hour, the greatest of each five minutes is kept."""
    history = [one for one in status.rpo_history if now - HISTORY_SECONDS - SPAN_SECONDS < one.at <= now]
    age = round(max(0.0, age), 1)
    if history and now - history[-1].at < SPAN_SECONDS:
        history[-1] = AgeSpan(history[-1].at, max(history[-1].seconds, age))
    else:
        history.append(AgeSpan(now, age))
    return replace(status, rpo_history=history, rpo_seconds=max(one.seconds for one in history))


def _fail(facts: ReplicationFacts, reason: str, message: str, now: float) -> ReplicationPlan:
    """The next try takes a new snapshot, and sends all that changed since the replica's newest point."""
    status = facts.status
    pause = min(MOST_RETRY_SECONDS, LEAST_RETRY_SECONDS * 2 ** min(status.failures, 8))
    if reason in REFUSALS:  # people mend it, at the other cluster mostly, and wait for what they did to show
        pause = MOST_RETRY_SECONDS
    elif reason == _STALE:
        pause = SLOW_RETRY_SECONDS
    elif status.point is not None and now - status.point.begun_at < facts.spec.rpo:
        pause = min(pause, facts.spec.rpo * RETRY_SHARE)  # a line that drops for a moment doesn't break a short RPO
    failed = replace(
        status,
        next=None,
        order=None,
        ask=None,
        failures=status.failures + 1,
        retry_at=now + pause,
        progress=0.0,
        reason=reason,
        message=message[:1000],
    )
    return ReplicationPlan(failed, drop=_of(facts.next), later=pause)


def _show(facts: ReplicationFacts, plan: ReplicationPlan, now: float) -> ReplicationPlan:
    """The plan with phase and lag."""
    status, rpo = plan.status, facts.spec.rpo
    lag = max(0.0, now - status.point.begun_at) if status.point is not None else None
    if status.failures and status.reason:
        phase = "Stale" if status.reason == _STALE else "Interrupted"
    elif facts.fenced and status.told_final:  # until the replica has confirmed that it is still one
        phase = "TakingBack"
    elif lag is None:
        phase = "Seeding" if status.next is not None or plan.begin else "Pending"
    else:
        phase = "Behind" if lag > ALARM_SHARE * rpo else "Replicating"
    step = max(1.0, rpo / 12)
    changed = phase != facts.status.phase or status.point != facts.status.point or facts.status.updated_at is None
    left = step - (now - (status.updated_at or 0.0))  # until the lag is worth a write
    if lag is not None and (changed or not 0 < left <= step):
        status, left = replace(status, lag_seconds=round(lag, 1), updated_at=now), step
        if lag > (status.rpo_seconds or 0.0) and facts.status.point == status.point:
            status = note_age(status, lag, now)
    left = max(0.1, left) if left <= step else step
    later = left if plan.later <= 0 else min(plan.later, left)
    return replace(plan, status=replace(status, phase=phase), later=later)
