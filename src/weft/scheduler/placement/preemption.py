"""A place for which others give way, and what a refused lease could have with a higher priority."""

from __future__ import annotations

import msgspec
import numpy as np

from weft.contracts.policy import Request
from weft.informer.disruption.budgets import Allowance
from weft.informer.workloads import spec_of
from weft.kinds.fields.lease import MOST_PRIORITY, LeaseRequest
from weft.kinds.project import ProjectSpec
from weft.objects.identity import object_key
from weft.scheduler.allocation.preempt import (
    Need,
    describe_kept,
    describe_way,
    find_way,
    name_victims,
    preempting,
    read_need,
)
from weft.scheduler.engine.explain import explain
from weft.scheduler.placement.found import Placement, Search
from weft.scheduler.workload.request import Candidate


def preempt(search: Search, candidate: Candidate, now: float) -> tuple[Candidate, Placement | None]:
    """``candidate`` with what its decision says of others, and its place where they give way; None if there is no such place."""
    request, workload, spec = candidate.request, candidate.workload, spec_of(candidate.workload)
    need = read_need(request, workload.uid, spec.lease, spec.grace)
    kept: dict[Allowance, list[str]] = {}
    way = find_way(search.view, search.engine, need, now, search.disruptions, kept)
    project = workload.envelope.project
    notes = (*(describe_way(way, project) if way is not None else ()), *describe_kept(kept, project))
    candidate = msgspec.structs.replace(candidate, preempts=notes)
    if way is None:
        return candidate, None
    if way.slot is not None:  # its capacity is counted over time
        candidate = msgspec.structs.replace(candidate, lease=way.slot.lease)
        request = without_capacity(request)
    with preempting(search.engine, way.victims):
        explanation = explain(search.engine, request, workload.uid, way.row)
    return candidate, Placement(candidate, way.row, explanation, way=way)


def suggest_priority(search: Search, candidate: Candidate, asked: LeaseRequest, now: float) -> str:
    """Suggest a higher priority to a refused lease by what it could have with that, as the end of a sentence."""
    if asked.mode == "best-effort":
        return ""
    need = read_need(candidate.request, candidate.workload.uid, asked, spec_of(candidate.workload).grace)
    name = candidate.workload.envelope.project
    project = search.view.get(object_key("project", None, name or ""))
    ceiling = None if project is None else project.spec(ProjectSpec).priority_ceiling
    need = msgspec.structs.replace(need, priority=max(asked.priority, MOST_PRIORITY if ceiling is None else ceiling))
    way = find_way(search.view, search.engine, need, now, search.disruptions, {})
    if way is None:
        return _explain_nobody(search, need, now, name, hopes=asked.priority > 0)
    most = max(victim.priority for victim in way.victims)
    return f"; or with priority {most}, if these are suspended: {name_victims(way, name)}"


def without_capacity(request: Request) -> Request:
    """It, where capacity doesn't count."""
    return msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2]))


def _explain_nobody(search: Search, need: Need, now: float, project: str | None, *, hopes: bool) -> str:
    """Why nobody is suspended for a refused lease, whatever its priority, and what would help; as the end of a sentence. Empty
    where no node could take it anyway. ``hopes``: its priority was given, so somebody expects others to be suspended."""
    engine, asked = search.engine, need.request
    snapshot = engine.snapshot
    large = (snapshot.capacity[:2] >= np.array(asked.amounts[:2])[:, None]).all(axis=0)
    if asked.gang or not (engine.fits(without_capacity(asked)) & large).any():
        return ""
    if need.lease is None:  # what is free now may be promised to others later
        need = msgspec.structs.replace(need, lease=LeaseRequest(mode="immediate", duration=1.0, priority=need.priority))
        way = find_way(search.view, engine, need, now, search.disruptions, {})
        if way is not None:
            names = name_victims(way, project)
            return f"; with a duration, if these are suspended: {names}, until others are promised that capacity"
    if not hopes:
        return ""
    return (
        "; nobody can be suspended for it: that takes preemptible leases of lower priority that run (weft lease list)"
    )
