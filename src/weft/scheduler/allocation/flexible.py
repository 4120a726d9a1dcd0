"""Leases with deadlines that may run at other times than they have now, and where.

What is promised to a lease with a deadline is its end: one that hasn't begun may begin at any time that keeps it, and one that may
be suspended is, for a while that is planned with both its times, and that is taken back where nothing needs it any more. Everything
else keeps its place. A node begins no lease while the server doesn't hear it (``agent/server/contact.py``), so what begins later
than ``AHEAD_SECONDS`` from now hasn't begun anywhere when its other times are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from weft.contracts.policy import Request
from weft.informer.disruption.budgets import Budgets
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.fields.lease import AllocatedLease
from weft.kinds.node import NODES_BY_UID, NodeReport
from weft.kinds.parts.workload import WORKLOADS_BY_UID
from weft.kinds.registry import find_kind
from weft.scheduler.allocation.preempt import may_suspend
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.table.facts import amounts_on
from weft.scheduler.workload.request import Candidate, Waiting

AHEAD_SECONDS = 60.0
ROUNDING_SECONDS = 1e-3

Read = Callable[[Item], Candidate | Waiting]


class Flexible(msgspec.Struct, frozen=True):
    """A lease with a deadline that may run at other times."""

    workload: Item
    allocation: Item
    lease: AllocatedLease
    deadline_at: float
    begun: bool
    rows: tuple[int, ...]  # that it may run on; its own first
    splits: bool
    candidate: Candidate | None  # None: it stays on its node
    now: float

    @property
    def spec(self) -> AllocationSpec:
        return self.allocation.spec(AllocationSpec)

    def find_rested(self, resume_seconds: float) -> float:
        """Seconds that it hasn't worked since it began; after each pause it needs ``resume_seconds``."""
        to_come = sum(pause.until - pause.at + resume_seconds for pause in self.lease.pauses if pause.until > self.now)
        rested = self.lease.suspended_seconds - to_come if self.begun else 0.0
        return rested if rested > ROUNDING_SECONDS else 0.0


def may_split(workload: Item, request: Request, budgets: Budgets) -> bool:
    """Whether a lease may be suspended as planned: its kind can be, and no disruption budget counts it."""
    can = any(verb.name == "suspend" for verb in find_kind(workload.envelope.kind).verbs)
    return can and request.gpus is None and not budgets.find(workload)


def can_save(view: View, node_uid: str) -> bool:
    return any("suspend" in node.report(NodeReport).capabilities for node in view.find(NODES_BY_UID, node_uid))


def list_flexible(
    view: View,
    engine: Engine,
    read: Read,
    uid: str,
    rows: Sequence[int],
    everywhere: Sequence[int],
    now: float,
    budgets: Budgets,
) -> Iterator[Flexible]:
    """The leases on ``rows`` that may run at other times, ``everywhere``; those on the first nodes first. Not that
    of the workload ``uid``."""
    for row in rows:
        for key in engine.snapshot.leases.list_keys(engine.snapshot.uids[row]):
            item = view.get(key)
            if item is None or item.spec(AllocationSpec).workload.uid == uid:
                continue
            if (found := read_flexible(view, engine, read, item, row, everywhere, now, budgets)) is not None:
                yield found


def read_flexible(
    view: View,
    engine: Engine,
    read: Read,
    item: Item,
    row: int,
    everywhere: Sequence[int],
    now: float,
    budgets: Budgets,
) -> Flexible | None:
    """The allocation ``item`` on ``row``; None if it keeps its times."""
    spec, report, lease = item.spec(AllocationSpec), item.report(AllocationReport), item.spec(AllocationSpec).lease
    if lease is None or lease.end is None or lease.cancelled or lease.suspension is not None:
        return None
    if item.deleting or spec.role != "active" or spec.migration or spec.storage or spec.desired != "run":
        return None
    workload = next(iter(view.find(WORKLOADS_BY_UID, spec.workload.uid)), None)
    asked = spec_of(workload).lease if workload is not None else None
    if workload is None or workload.deleting or asked is None or asked.deadline_at is None or spec_of(workload).gang:
        return None
    deadline_at = max(asked.deadline_at, lease.end)
    splits = lease.preemptible and not spec.gpus and not budgets.find(workload)
    splits = splits and any(verb.name == "suspend" for verb in find_kind(spec.workload.kind).verbs)
    splits = splits and can_save(view, spec.node_uid)
    if report.state == "pending" and lease.prepare_at > now + AHEAD_SECONDS and not spec.waits_for:
        candidate = _read_elsewhere(read, workload, spec)
        others = list_rows(engine, item, candidate.request, everywhere) if candidate is not None else []
        if splits:
            others = [other for other in others if can_save(view, engine.snapshot.uids[other])]
        there = (row, *(other for other in others if other != row))
        return Flexible(workload, item, lease, deadline_at, False, there, splits, candidate, now)
    lasts = lease.start <= now < lease.end - 1.0  # else it is about to end
    works = all(pause.until <= now or pause.at > now + AHEAD_SECONDS for pause in lease.pauses)
    if splits and works and lasts and may_suspend(view, item):
        return Flexible(workload, item, lease, deadline_at, True, (row,), splits, None, now)
    return None


def _read_elsewhere(read: Read, workload: Item, spec: AllocationSpec) -> Candidate | None:
    """It as a candidate for another node; None if it has something that only its node has."""
    if spec.gpus or spec.volumes or spec.origin is not None:
        return None
    candidate = read(workload)
    if isinstance(candidate, Waiting) or candidate.reserved or candidate.arriving is not None:
        return None
    same = candidate.request.amounts[:2] == amounts_on(spec, spec.resources)[:2]  # it isn't being resized
    return candidate if same else None


def list_rows(engine: Engine, item: Item, request: Request, rows: Sequence[int]) -> list[int]:
    """Those of ``rows`` that take it, but for its cores and memory, which are counted over time."""
    with engine.snapshot.trial() as trial:
        trial.drop(item.key)
        fits = engine.fits(msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2])))
        return [row for row in rows if fits[row]]
