"""Answers a Report: how full the nodes are, what waits and why, and how long decisions took. Pure over snapshot and view."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from weft.contracts.policy import RESOURCES, Values, Whole
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Item, View
from weft.informer.workloads import list_workloads, name_of
from weft.kinds.allocation import (
    ALLOCATIONS_BY_NODE,
    AllocationReport,
    AllocationSpec,
    has_ended_for_good,
    is_reservation,
)
from weft.kinds.decision import DecisionSpec
from weft.kinds.report import NodeUse, ReportSpec, ReportStatus, ResourceUse, WaitingUse
from weft.objects.envelope import merge_part
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.queue.waiting import list_queue
from weft.scheduler.report.drain_preview import preview_drain
from weft.scheduler.report.fairness import report_fairness
from weft.scheduler.report.rebalance import preview_rebalance
from weft.scheduler.report.shortage import preview_shortage
from weft.scheduler.table.facts import NEWER, QUARANTINED
from weft.scheduler.table.snapshot import Snapshot

ALL_UP_TO = 64
SAMPLE = 16  # of more nodes: the fullest and the emptiest
FIRST = 5
NEARLY_NOTHING = 0.05  # of a node's capacity: with less of one resource free, the others are hardly of use


def plan_report(view: View, engine: Engine, question: Item, strategy: str, now: float) -> Commit:
    """Write the answer into ``question``'s status."""
    spec, envelope = question.spec(ReportSpec), edit(question)
    if spec.subject == "drain":
        status = preview_drain(view, engine, spec.node or "", strategy, now, force=spec.force)
        status.at = now
    elif spec.subject == "queue":
        queue, count = list_queue(view, engine, strategy, now)
        status = ReportStatus(phase="Done", at=now, queue=queue, queued=count)
    elif spec.subject == "rebalance":
        status = preview_rebalance(view, engine, spec, strategy, now)
        status.at = now
    elif spec.subject == "shortage":
        status = preview_shortage(view, engine, spec, strategy, now)
        status.at = now
    elif spec.subject == "fairness":
        status = report_fairness(view, engine, now)
    else:
        status = report_placement(view, engine.snapshot, strategy, now)
    envelope.status = merge_part(envelope.status, status)
    return Commit(question.key, [put(envelope)], [unchanged(question)])


def report_placement(view: View, snapshot: Snapshot, strategy: str, now: float) -> ReportStatus:
    """The present figures; nodes that are down or cordoned count only in ``node_count``."""
    usable = snapshot.online & ~snapshot.cordoned
    capacity, allocated = snapshot.capacity, snapshot.allocated
    shares = 100.0 * allocated / np.maximum(capacity, 1)
    fullness = shares.max(axis=0) if len(snapshot) else np.zeros(0)
    waiting: defaultdict[str, list[str]] = defaultdict(list)
    for item in list_workloads(view):
        placed = item.envelope.condition("Placed")
        if placed is not None and placed.status == "False" and not item.deleting:
            waiting[placed.reason].append(name_of(item))
    decisions = [item.spec(DecisionSpec) for item in view.of_kind("decision").values()]
    took = np.array([decision.took_ms for decision in decisions if decision.took_ms > 0.0])
    return ReportStatus(
        phase="Done",
        at=now,
        strategy=strategy,
        node_count=len(snapshot),
        usable=int(usable.sum()),
        measured=int((usable & snapshot.measured).sum()),
        placed=sum(_is_placed(item) for item in view.of_kind("allocation").values()),
        resources=_sum_resources(snapshot, np.flatnonzero(usable)),
        nodes=_sample_nodes(view, snapshot, shares, fullness),
        imbalance=round(float(fullness[usable].std()), 2) if usable.any() else 0.0,
        waiting=[
            WaitingUse(reason, len(names), sorted(names)[:FIRST])
            for reason, names in sorted(waiting.items(), key=lambda one: (-len(one[1]), one[0]))
        ],
        decisions=len(decisions),
        decision_ms={f"p{q}": round(float(np.percentile(took, q)), 3) for q in (50, 99)} if took.size else {},
        policies=dict(Counter(decision.policy for decision in decisions)),
    )


def _sum_resources(snapshot: Snapshot, rows: Whole) -> list[ResourceUse]:
    out = []
    used, there = _sum_used(snapshot, rows)
    capacity, allocated = snapshot.capacity[:, rows], snapshot.allocated[:, rows]
    free = np.maximum(capacity - allocated, 0)
    scarce = free < NEARLY_NOTHING * capacity
    for index, resource in enumerate(RESOURCES):
        scale = 1000.0 if resource == "cpu" else 1.0
        others = np.delete(scarce, index, axis=0).any(axis=0)
        fullest = int(free[index].argmax()) if rows.size else None
        out.append(
            ResourceUse(
                resource,
                capacity=float(capacity[index].sum()) / scale,
                allocated=float(allocated[index].sum()) / scale,
                largest_free=0.0 if fullest is None else float(free[index][fullest]) / scale,
                largest_free_node="" if fullest is None else snapshot.names[int(rows[fullest])],
                stranded=float(free[index][others].sum()) / scale,
                used=used[index] / scale,
                there=there[index] / scale,
            )
        )
    return out


def _sum_used(snapshot: Snapshot, rows: Whole) -> tuple[list[int], list[int]]:
    """The usage and capacity of those nodes whose usage is measured."""
    used, there = [0] * len(RESOURCES), [0] * len(RESOURCES)
    for row in rows.tolist():
        measured = snapshot.find_use(snapshot.uids[row])
        if measured is not None:
            used = [sum_ + amount for sum_, amount in zip(used, measured.amounts, strict=True)]
            there = [sum_ + amount for sum_, amount in zip(there, snapshot.facts[row].capacity, strict=True)]
    return used, there


def _share_used(snapshot: Snapshot, row: int) -> dict[str, float]:
    measured = snapshot.find_use(snapshot.uids[row])
    if measured is None:
        return {}
    parts = zip(RESOURCES, measured.amounts, snapshot.facts[row].capacity, strict=True)
    return {resource: round(100.0 * amount / max(1, all_), 1) for resource, amount, all_ in parts}


def _sample_nodes(view: View, snapshot: Snapshot, shares: Values, fullness: Values) -> list[NodeUse]:
    order = [int(row) for row in np.lexsort((snapshot.rank, -fullness))]
    if len(order) > ALL_UP_TO:
        order = order[:SAMPLE] + order[-SAMPLE:]
    return [
        NodeUse(
            snapshot.names[row],
            sum(_is_placed(item) for item in view.find(ALLOCATIONS_BY_NODE, snapshot.uids[row])),
            {resource: round(float(shares[index, row]), 1) for index, resource in enumerate(RESOURCES)},
            "" if snapshot.online[row] and not snapshot.cordoned[row] else _note(snapshot, row),
            _share_used(snapshot, row),
        )
        for row in order
    ]


def _is_placed(item: Item) -> bool:
    """Ended tries of jobs keep their allocations and take nothing."""
    return not is_reservation(item) and not has_ended_for_good(item.spec(AllocationSpec), item.report(AllocationReport))


def _note(snapshot: Snapshot, row: int) -> str:
    if not snapshot.online[row]:
        return "not ready"
    texts = snapshot.facts[row].texts
    return "quarantined" if QUARANTINED in texts else "newer than the servers" if NEWER in texts else "cordoned"
