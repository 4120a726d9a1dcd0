"""Places in the slots of a reservation, of one workload or of a gang; or what they wait for."""

from __future__ import annotations

import msgspec

from weft.scheduler.engine.explain import explain
from weft.scheduler.gang.within import Places
from weft.scheduler.placement.found import Placement, PlacementResult, Search
from weft.scheduler.reservation.placing import Within, find_within, without_slot
from weft.scheduler.workload.request import Candidate, Waiting


def find(search: Search, candidates: list[Candidate], now: float) -> PlacementResult:
    if len(candidates) == 1:
        found = find_one(search, candidates[0], now)
        return found if isinstance(found, Waiting) else [found]
    places = Places(search.view, search.engine, candidates, now).find()
    if isinstance(places, Waiting):
        return places
    return [_enter(search, candidates[number], place) for number, place in places.items()]


def find_one(search: Search, candidate: Candidate, now: float) -> Placement | Waiting:
    place = find_within(search.view, search.engine, candidate, now)
    return place if isinstance(place, Waiting) else _enter(search, candidate, place)


def _enter(search: Search, candidate: Candidate, place: Within) -> Placement:
    """It with its slot, the row of its node, and why it is there."""
    explanation = explain(search.engine, without_slot(candidate.request), candidate.workload.uid, place.row)
    chosen = [one for one in explanation.verdicts if one.outcome == "chosen"]  # others have nothing of its slots
    notes = (*candidate.preempts, place.note)
    candidate = msgspec.structs.replace(candidate, lease=place.lease, slot=place.slot, preempts=notes)
    return Placement(candidate, place.row, msgspec.structs.replace(explanation, verdicts=chosen), place.load)
