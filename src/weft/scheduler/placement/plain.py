"""Places without an end: what is free now. Of one workload, or of a gang whose members all fit."""

from __future__ import annotations

import msgspec

from weft.informer.workloads import spec_of
from weft.kinds.fields.lease import LEASE_CONFLICT
from weft.scheduler.engine.explain import explain
from weft.scheduler.gang.explain import explain_places, explain_refusal
from weft.scheduler.gang.leases import open_lease
from weft.scheduler.gang.placement import GangMember, find_places
from weft.scheduler.placement.found import Placement, PlacementResult, Refusal, Search
from weft.scheduler.placement.preemption import preempt, suggest_priority
from weft.scheduler.table.facts import name_workload
from weft.scheduler.workload.request import Candidate


def find(search: Search, candidates: list[Candidate], now: float) -> PlacementResult:
    if len(candidates) > 1:
        return _find_gang(search, candidates, now)
    return _find_one(search, candidates[0], now)


def _find_one(search: Search, candidate: Candidate, now: float) -> PlacementResult:
    engine, request, uid = search.engine, candidate.request, candidate.workload.uid
    asked = spec_of(candidate.workload).lease
    standing = search.queue.verdict(request) if asked is None else None
    if standing is not None:
        return [Refusal(candidate, standing)]
    row = engine.choose(request, uid)
    explanation = explain(engine, request, uid, row)
    if skipped := tuple(search.own.skipped(request.strategy)):
        candidate = msgspec.structs.replace(candidate, skipped=skipped)
    candidate = _lease_openly(candidate, now)
    if row is not None:
        return [Placement(candidate, row, explanation)]
    candidate, preempting = preempt(search, candidate, now)
    if preempting is not None:
        return [preempting]
    if asked is None or asked.mode != "immediate":
        return [Refusal(candidate, explanation)]
    message = explanation.message + suggest_priority(search, candidate, asked, now)
    refused = msgspec.structs.replace(explanation, error=LEASE_CONFLICT, message=message)
    return [Refusal(candidate, refused, sleeps=False)]


def _find_gang(search: Search, candidates: list[Candidate], now: float) -> PlacementResult:
    engine, clock, budget = search.engine, search.clock, search.gang_budget
    candidates = [_lease_openly(candidate, now) for candidate in candidates]
    members = [GangMember(c.request, c.workload.uid, name_workload(c.workload.envelope.ref)) for c in candidates]
    began = clock.elapsed()
    searches = budget.allows(began)
    joint = find_places(engine, members, search=searches)
    if joint.searched:
        budget.spend(began, clock.elapsed())
    if joint.rows is None:
        if not joint.proven and not searches:
            budget.owed.add(candidates[0].workload.key)
        explanations = explain_refusal(engine, members, joint)
        return [Refusal(c, explanation) for c, explanation in zip(candidates, explanations, strict=True)]
    explanations = explain_places(engine, members, joint)
    return [Placement(candidates[member], joint.rows[member], explanations[member]) for member in joint.order]


def _lease_openly(candidate: Candidate, now: float) -> Candidate:
    """It with its lease, if it has one without an end."""
    asked = spec_of(candidate.workload).lease
    return candidate if asked is None else msgspec.structs.replace(candidate, lease=open_lease(asked, now))
