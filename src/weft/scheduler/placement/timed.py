"""Places for leases that end: the first time at which each fits for all of it. Of one workload, or of a gang."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from weft.informer.workloads import spec_of
from weft.kinds.fields.lease import LEASE_CONFLICT, AllocatedLease
from weft.scheduler.allocation.lease import Conflict, Opening, find_opening, find_slot
from weft.scheduler.allocation.promise import find_again as find_slot_again
from weft.scheduler.allocation.promise import read_lost
from weft.scheduler.engine.explain import Explanation, explain
from weft.scheduler.gang import leases
from weft.scheduler.gang.explain import explain_leased_places, explain_leased_refusal
from weft.scheduler.gang.leases import LeasedMember, LeasedPlace, find_leased_places
from weft.scheduler.placement.found import Placement, PlacementResult, Refusal, Search
from weft.scheduler.placement.preemption import preempt, suggest_priority, without_capacity
from weft.scheduler.placement.replanned import find_replanned
from weft.scheduler.table.facts import name_workload
from weft.scheduler.workload.request import Candidate


def find(search: Search, candidates: list[Candidate], now: float) -> PlacementResult:
    if len(candidates) > 1:
        return _find_gang(search, candidates, now)
    return [_find_one(search, candidates[0], now)]


def find_places(
    search: Search, candidates: list[Candidate], nodes: Mapping[str, str], now: float
) -> list[Placement] | None:
    """The places of best-effort leases that start now on these nodes, by uid of the workload; None if they don't fit there."""
    engine = search.engine
    members = [
        msgspec.structs.replace(one, request=msgspec.structs.replace(one.request, node=nodes.get(one.uid)))
        for one in read_members(candidates, now)
    ]
    if len(candidates) > 1:
        found = find_leased_places(engine, members, now)
        return None if isinstance(found, leases.Refusal) else _place_members(search, candidates, found)
    (member,), asked = members, members[0].asked
    assert asked is not None
    slot = find_opening(engine, member.request, member.uid, asked, member.grace_seconds, now)
    return None if slot is None else [_place(search, candidates[0], slot)]


def refuse(search: Search, candidate: Candidate, now: float, otherwise: str) -> Refusal:
    """Why a best-effort lease waits: what is lacking now, or ``otherwise``."""
    spec = spec_of(candidate.workload)
    assert spec.lease is not None
    found = find_slot(search.engine, candidate.request, candidate.workload.uid, spec.lease, spec.grace, now)
    message, node = (found.message, found.node) if isinstance(found, Conflict) else (otherwise, "")
    lacking = Explanation(len(search.engine.snapshot), [], {}, "insufficientResources", message, nearest_node=node)
    return Refusal(candidate, lacking, sleeps=False)


def find_again(search: Search, candidate: Candidate, held: AllocatedLease, now: float) -> Placement | Conflict:
    """Another place for a lease that was ``held`` and hasn't begun. One whose start is over may preempt nobody."""
    spec = spec_of(candidate.workload)
    assert spec.lease is not None
    found = find_slot_again(search.engine, candidate.request, candidate.workload.uid, spec.lease, held, spec.grace, now)
    if isinstance(found, Opening):
        return _place(search, candidate, found)
    if spec.lease.mode == "reservation" and held.start < now:
        return found
    if (replanned := find_replanned(search, candidate, now)) is not None:
        return replanned
    candidate, preempting = preempt(search, candidate, now)
    if preempting is not None:
        return preempting
    dearer = suggest_priority(search, candidate, spec.lease, now)
    return msgspec.structs.replace(found, message=found.message + dearer)


def _find_one(search: Search, candidate: Candidate, now: float) -> Placement | Refusal:
    """The first time at which it fits for all of its lease."""
    workload, request, spec = candidate.workload, candidate.request, spec_of(candidate.workload)
    asked = spec.lease
    assert asked is not None
    if (held := read_lost(workload, asked, now)) is not None:
        found = find_slot_again(search.engine, request, workload.uid, asked, held, spec.grace, now)
    else:
        found = find_slot(search.engine, request, workload.uid, asked, spec.grace, now)
    if isinstance(found, Opening):
        return _place(search, candidate, found)
    if held is None and (replanned := find_replanned(search, candidate, now)) is not None:
        return replanned
    candidate, preempting = preempt(search, candidate, now)
    if preempting is not None:
        return preempting
    message = found.message + suggest_priority(search, candidate, asked, now)
    explanation = Explanation(len(search.engine.snapshot), [], {}, LEASE_CONFLICT, message, nearest_node=found.node)
    return Refusal(candidate, explanation, sleeps=False)


def _place(search: Search, candidate: Candidate, slot: Opening) -> Placement:
    # Its capacity is counted over time, which the explanation of a node's score doesn't know.
    explanation = explain(search.engine, without_capacity(candidate.request), candidate.workload.uid, slot.row)
    return Placement(msgspec.structs.replace(candidate, lease=slot.lease), slot.row, explanation)


def _find_gang(search: Search, candidates: list[Candidate], now: float) -> PlacementResult:
    """Places for members of which some have leases that end, or why there are none."""
    engine, members = search.engine, read_members(candidates, now)
    found = find_leased_places(engine, members, now)
    if not isinstance(found, leases.Refusal):
        return _place_members(search, candidates, found)
    explanations = explain_leased_refusal(engine, members, found)
    return [
        Refusal(each, why, sleeps=False, is_over_time=why.error != LEASE_CONFLICT)
        for each, why in zip(candidates, explanations, strict=True)
    ]


def read_members(candidates: Sequence[Candidate], now: float) -> list[LeasedMember]:
    members = list[LeasedMember]()
    for each in candidates:
        spec, name = spec_of(each.workload), name_workload(each.workload.envelope.ref)
        held = read_lost(each.workload, spec.lease, now) if spec.lease is not None else None
        members.append(LeasedMember(each.request, each.workload.uid, name, spec.lease, held, spec.grace))
    return members


def _place_members(
    search: Search, candidates: Sequence[Candidate], found: Mapping[int, LeasedPlace]
) -> list[Placement]:
    explanations = explain_leased_places(search.engine, read_members(candidates, 0.0), found)
    return [
        Placement(msgspec.structs.replace(candidates[number], lease=place.lease), place.row, explanation)
        for (number, place), explanation in zip(found.items(), explanations, strict=True)
    ]
