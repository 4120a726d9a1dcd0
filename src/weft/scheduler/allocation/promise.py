"""A lease that hasn't begun, on a node that is lost or takes nothing more, gets another place, at the time that it was promised.
Pure but for the engine's caches.

An agent begins no lease while the server doesn't hear it (``agent/server/contact.py``). So of a node that was lost before a lease's
start, and hasn't been heard since, it is certain that the lease's guest doesn't run there. The commit holds only while nobody has
written the node and the former allocation: a node that is heard again writes its report first.
"""

from __future__ import annotations

import msgspec

from weft.contracts.journal import Event
from weft.contracts.policy import Request
from weft.contracts.store import Write
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Item, View
from weft.kinds.allocation import AllocationReport, AllocationSpec, is_lease_over
from weft.kinds.fields.lease import LEASE_AT_RISK, LEASE_CONFLICT, AllocatedLease, LeaseRequest
from weft.kinds.node import NODES_BY_UID, NodeActions, NodeReport, NodeStatus, is_quarantined
from weft.objects.envelope import Condition, set_condition
from weft.objects.quantity import format_time
from weft.scheduler.allocation.lease import SOURCE, Conflict, Opening, describe_place, find_slot
from weft.scheduler.engine.cycle import Engine

CLOCKS_DIFFER_SECONDS = 2.0  # a node's from the server's
BEGINS_SOON_SECONDS = 5.0  # a node that works keeps what it is about to begin
_NOT_BEGUN = ("pending", "preparing", "starting")


def find_trouble(view: View, allocation: Item, now: float) -> str:
    """Why its lease should begin elsewhere: ``n1 is lost``; empty if it has begun, or may begin here."""
    spec, report = allocation.spec(AllocationSpec), allocation.report(AllocationReport)
    lease = spec.lease
    if lease is None or lease.end is None or lease.cancelled or lease.suspension is not None:
        return ""
    if spec.role != "active" or spec.migration is not None or allocation.deleting or is_lease_over(spec, report):
        return ""
    node = next(iter(view.find(NODES_BY_UID, spec.node_uid)), None)
    if node is None:
        return ""
    if node.status(NodeStatus).phase == "Autonomous":
        return ""
    if node.status(NodeStatus).phase == "NotReady":
        # A guest that boots ahead has its volumes open, and they may be on a storage that other nodes use too.
        begins = lease.prepare_at if spec.volumes else lease.start
        lost = report.state in _NOT_BEGUN and was_lost_before(node, begins)
        return f"{spec.node} is lost" if lost else ""
    return find_node_obstacle(node, lease.prepare_at) if begins_later(lease, report, now) else ""


def begins_later(lease: AllocatedLease, report: AllocationReport, now: float) -> bool:
    """Whether a node that works has done nothing for it yet, and won't soon: it may still begin elsewhere."""
    return report.state == "pending" and now < lease.prepare_at - BEGINS_SOON_SECONDS


def was_lost_before(node: Item, moment: float) -> bool:
    """Whether a node was lost before, and hasn't been heard since."""
    status = node.status(NodeStatus)
    silent = status.lost_contact == node.report(NodeReport).contact
    lost_at = status.lost_at if status.lost_at is not None else status.since
    return status.phase == "NotReady" and silent and lost_at < moment - CLOCKS_DIFFER_SECONDS


def find_node_obstacle(node: Item, begins: float) -> str:
    """Why a node that works takes nothing more that ``begins`` then (seconds since 1970); empty if it does."""
    asked, status, name = node.actions(NodeActions), node.status(NodeStatus), node.envelope.name
    if asked.drain:
        return f"{name} is being drained"
    if asked.maintenance:
        return f"{name} is under maintenance"
    if asked.cordoned:
        return f"{name} is cordoned"
    if status.newer_than:
        return f"{name} is newer than the servers"
    ends = status.quarantine.until if status.quarantine is not None and is_quarantined(status) else 0.0
    return f"{name} is quarantined" if begins < ends else ""


def find_again(
    engine: Engine, request: Request, uid: str, asked: LeaseRequest, held: AllocatedLease, grace: float, now: float
) -> Opening | Conflict:
    """Another place for the lease ``held``, at the same time, late if that has come; one that has no start of its own may get
    another time."""
    assert held.end is not None
    if held.pauses:
        return find_slot(engine, request, uid, asked, grace, now)
    start = max(held.start, now)
    same = LeaseRequest(
        mode="reservation",
        start=start,
        duration=held.end - start,
        preemptible=held.preemptible,
        priority=held.priority,
    )
    if held.end <= now + 1.0:
        return Conflict(f"its lease ended at {format_time(held.end)}")
    found = find_slot(engine, request, uid, same, grace, now)
    if isinstance(found, Opening):
        lease = msgspec.structs.replace(found.lease, mode=held.mode, start=held.start, end=held.end)
        return Opening(found.row, lease)
    if asked.mode == "reservation":
        return found
    return find_slot(engine, request, uid, asked, grace, now, later=asked.mode == "best-effort")


def read_lost(workload: Item, asked: LeaseRequest, now: float) -> AllocatedLease | None:
    """The lease of a reservation that had its place, and whose node was given up after its start."""
    placed, start, duration = workload.envelope.condition("Placed"), asked.start, asked.duration
    if asked.mode != "reservation" or start is None or duration is None or start >= now:
        return None
    if placed is None or placed.status != "True":
        return None
    return AllocatedLease(
        mode="reservation",
        start=start,
        end=start + duration,
        preemptible=bool(asked.preemptible),
        priority=asked.priority,
    )


def withdraw(view: View, commit: Commit, workload: Item, allocation: Item, trouble: str, now: float) -> Commit:
    """``commit``, which gives a workload another place, with the end of the former one."""
    spec, envelope = allocation.spec(AllocationSpec), edit(allocation)
    envelope.deleting_since = now
    event = Event(
        "Warning", "LeaseReplanned", f"its lease begins elsewhere, since {trouble}", workload.envelope.ref, SOURCE
    )
    nodes = view.find(NODES_BY_UID, spec.node_uid)
    return Commit(
        commit.key,
        [put(envelope), *commit.writes],
        [*commit.preconditions, unchanged(allocation), *(unchanged(node) for node in nodes)],
        [event, *commit.events],
        commit.made,
    )


def plan_at_risk(workload: Item, message: str, decision: Write | None, now: float) -> Commit | None:
    """Tell its owner what was lost, and what is nearest; None if that is told. ``decision`` explains it."""
    envelope, of = edit(workload), workload.envelope
    if not set_condition(envelope, Condition("Placed", "True", LEASE_AT_RISK, message, now, of.generation)):
        return None
    former = of.condition("Placed")
    known = former is not None and former.message.partition(";")[0] == message.partition(";")[0]
    events = [] if known else [Event("Warning", LEASE_AT_RISK, message, of.ref, SOURCE)]
    writes = [put(envelope), *([decision] if decision is not None else [])]
    return Commit(workload.key, writes, [unchanged(workload)], events)


def is_at_risk(workload: Item) -> bool:
    """Whether its owner was told that its lease may not begin where it is, or can't last as long as requested."""
    placed = workload.envelope.condition("Placed")
    return placed is not None and placed.status == "True" and placed.reason in (LEASE_AT_RISK, LEASE_CONFLICT)


def clear_risk(workload: Item, allocation: Item, now: float) -> Commit | None:
    """Take that back: it begins where it is, or has."""
    spec, envelope, of = allocation.spec(AllocationSpec), edit(workload), workload.envelope
    where = describe_place(spec, spec.lease, now)
    set_condition(envelope, Condition("Placed", "True", "Placed", where, now, of.generation))
    return Commit(workload.key, [put(envelope)], [unchanged(workload), unchanged(allocation)])
