"""A place for a lease that fits only once leases with deadlines run at other times, or elsewhere."""

from __future__ import annotations

import msgspec

from weft.informer.workloads import spec_of
from weft.scheduler.allocation.replan import Asked, Replanned, describe_other, replan
from weft.scheduler.engine.explain import explain
from weft.scheduler.placement.found import Placement, ReplannedPlace, Search
from weft.scheduler.placement.preemption import without_capacity
from weft.scheduler.workload.request import Candidate


def find_replanned(search: Search, candidate: Candidate, now: float) -> Placement | None:
    """Its place, with the leases that are replanned for it; None if no plan keeps all promises, or none was found."""
    workload, spec, engine = candidate.workload, spec_of(candidate.workload), search.engine
    if spec.lease is None:
        return None
    asked, began = Asked(candidate, spec.lease, spec.grace), search.clock.elapsed()
    project = workload.envelope.project or ""
    searches = search.plan_budget.allows(project, began)
    found = replan(search.view, engine, search.read, asked, now, search.disruptions, searches=searches)
    if searches:
        search.plan_budget.spend(project, began, search.clock.elapsed())
    if found is None:
        return None
    notes = tuple(describe_other(one, workload.envelope.project) for one in found.others)
    candidate = msgspec.structs.replace(candidate, lease=found.lease, preempts=notes)
    explanation = explain(engine, without_capacity(candidate.request), workload.uid, found.row)
    others = tuple(ReplannedPlace(one, _place(search, one)) for one in found.others)
    return Placement(candidate, found.row, explanation, others=others)


def _place(search: Search, one: Replanned) -> Placement | None:
    """The place of one that begins on another node."""
    if one.candidate is None:
        return None
    candidate, request = msgspec.structs.replace(one.candidate, lease=one.lease), one.candidate.request
    with search.engine.snapshot.trial() as trial:
        trial.drop(one.allocation.key)
        explanation = explain(search.engine, without_capacity(request), one.workload.uid, one.row)
    return Placement(candidate, one.row, explanation)
