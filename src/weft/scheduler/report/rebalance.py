"""Answers a Report on rebalancing: which VMs would migrate where, so that load is even, by weft's own score. Pure but for the
snapshot, in which each migration that is found counts for those after it, and which is restored afterwards.

Only VMs that run without a lease are migrated, live: nothing stops for the sake of balance, so no disruption budget is touched.
Every target passes the filters of a Migration's own decision: constraints, affinity, spread, pools, devices, taints, leases and
reservations. Where the gain must last, each migration gains in every hour of the forecasts, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from weft.informer.view import View
from weft.insight.course import Course
from weft.kinds.migration import ENDED, MIGRATIONS_BY_WORKLOAD, MigrationSpec, MigrationStatus
from weft.kinds.rebalance_plan import MOST_LOADS, MOST_MIGRATIONS, NodeLoad, PlannedStep
from weft.kinds.report import ReportSpec, ReportStatus
from weft.objects.quantity import format_bytes, format_time
from weft.scheduler.constraint.relax import relax
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.migration.target import read_migration_candidate
from weft.scheduler.rebalance.gains import find_lasting
from weft.scheduler.rebalance.lazy import find_steps
from weft.scheduler.rebalance.model import Budget, Flags, MigrationStep, Problem, State, find_terms
from weft.scheduler.rebalance.plan import conclude
from weft.scheduler.rebalance.problem import MigratableWorkload, list_places, plan_step, read_course, read_problem
from weft.scheduler.table.facts import name_workload
from weft.scheduler.table.trial import Trial
from weft.scheduler.workload.request import Waiting
from weft.transfer.history import read_history

USUAL_HOURS = 24  # whose upper end counts as load
RESTS_SECONDS = 4 * 3600.0  # after a migration, before automatic ones choose the VM again
SETTLES_SECONDS = 600.0  # after a migration, before the use that was measured of both nodes says what it did
MOST_NAMED = 3
_AFTER = {
    "Succeeded": "after a migration",
    "Failed": "after a migration that failed",
    "Cancelled": "after a migration that was cancelled",
}


def preview_rebalance(view: View, engine: Engine, asked: ReportSpec, strategy: str, now: float) -> ReportStatus:
    """The migrations, in the order in which they should begin, and the scores before and after."""
    snapshot = engine.snapshot
    snapshot.settle()
    places, notes = list_places(view, snapshot), list[str]()
    courses = [read_course(view, place, now, asked.hours or USUAL_HOURS) for place in places]
    (problem, _), lasting = read_problem(view, snapshot, places, courses), list[State]()
    resting = _find_resting(view, places, RESTS_SECONDS if asked.hours else SETTLES_SECONDS, now)
    problem = msgspec.structs.replace(problem, mobile=problem.mobile.copy())
    problem.mobile[list(resting)] = False
    if asked.hours:
        problem, lasting, notes = _make_lasting(problem, places, courses, asked.hours)
    notes += [_describe_resting(places, resting)] if resting else []
    budget = Budget(steps=min(asked.migrations, MOST_MIGRATIONS), size=float(asked.bytes) if asked.bytes else math.inf)
    with snapshot.trial() as trial:

        def check(guest: int, target: int) -> Flags | None:
            lasts = find_lasting(lasting, guest)
            if lasts is not None and not lasts[target]:
                return lasts
            refused = try_migration(view, engine, trial, places[guest], target, strategy)
            if refused is not None:
                return refused if lasts is None else refused & lasts
            for state in lasting:
                state.apply(guest, target)
            return None

        outcome = conclude(problem, find_steps(problem, budget, check) if places else [])
    return ReportStatus(
        phase="Done",
        strategy=strategy,
        score_before=round(outcome.score_before, 6),
        score_after=round(outcome.score_after, 6),
        steps=_describe_steps(view, problem, places, outcome.steps, snapshot.names),
        loads=_describe_loads(problem, outcome.steps, snapshot.names),
        message="; ".join(notes),
    )


def _describe_loads(problem: Problem, steps: Sequence[MigrationStep], nodes: Sequence[str]) -> list[NodeLoad]:
    """Those that change most; by name."""
    at = problem.at.copy()
    for step in steps:
        at[step.guest] = step.target
    before, after = find_terms(problem, problem.at)[:2], find_terms(problem, at)[:2]
    most = np.argsort(-np.abs(after - before).sum(axis=0) - 1e-6 * before.sum(axis=0), kind="stable")[:MOST_LOADS]
    shown = sorted((row for row in most.tolist() if problem.counted[row]), key=lambda row: nodes[row])
    return [
        NodeLoad(
            node=nodes[row],
            cpu_before=round(float(before[0, row]), 4),
            cpu_after=round(float(after[0, row]), 4),
            memory_before=round(float(before[1, row]), 4),
            memory_after=round(float(after[1, row]), 4),
        )
        for row in shown
    ]


def _make_lasting(
    problem: Problem, places: Sequence[MigratableWorkload], courses: Sequence[Course | None], hours: int
) -> tuple[Problem, list[State], list[str]]:
    """The problem of those VMs whose forecasts are known, the fabric in each hour, and why others stay."""
    unknown = sum(course is None for course in courses)
    mobile = problem.mobile.copy()
    for number, course in enumerate(courses):
        mobile[number] &= course is not None
    problem = msgspec.structs.replace(problem, mobile=mobile)
    states = []
    for hour in range(hours + 1):
        load = problem.load.copy()
        for number, course in enumerate(courses):
            if course is not None:
                load[number, 0] = float(course.value[hour]) * 1000
        states.append(State(msgspec.structs.replace(problem, load=load)))
    notes = [f"{unknown} of {len(places)} VMs have no forecast, so they stay"] if unknown else []
    return problem, states, notes


def _find_resting(
    view: View, places: Sequence[MigratableWorkload], seconds: float, now: float
) -> dict[int, tuple[float, str]]:
    """The numbers of those that migrate, or did lately; until when each rests (infinite: it migrates), after which migration."""
    resting = dict[int, tuple[float, str]]()
    for number, place in enumerate(places):
        found = (item.status(MigrationStatus) for item in view.find(MIGRATIONS_BY_WORKLOAD, place.workload.key))
        last = max(
            (((one.ended_at or 0.0) + seconds if one.phase in ENDED else math.inf, one.phase) for one in found),
            default=(0.0, ""),
        )
        if last[0] > now:
            resting[number] = last
    return resting


def _describe_resting(places: Sequence[MigratableWorkload], resting: dict[int, tuple[float, str]]) -> str:
    """``vm/web rests until 2026-12-24 22:00 UTC, after a migration``"""
    said = [
        f"{name_workload(places[number].spec.workload)} "
        + ("is migrating" if math.isinf(until) else f"rests until {format_time(until)}, {_AFTER[phase]}")
        for number, (until, phase) in sorted(resting.items(), key=lambda one: -one[1][0])
    ]
    more = [f"and so do {len(said) - MOST_NAMED} more"] if len(said) > MOST_NAMED else []
    return "; ".join([*said[:MOST_NAMED], *more])


def try_migration(
    view: View, engine: Engine, trial: Trial, place: MigratableWorkload, target: int, strategy: str
) -> Flags | None:
    """Count the migration in the snapshot; or the nodes that would take the workload, if the target doesn't."""
    snapshot, what = engine.snapshot, f"{place.spec.workload.kind}/{place.spec.workload.name}"
    found = read_migration_candidate(view, place.workload, MigrationSpec(workload=what), strategy, [])
    if isinstance(found, Waiting):
        return np.zeros(len(snapshot), dtype=np.bool_)
    trial.drop(place.key)
    request, _ = relax(found.candidate.request, snapshot)
    fits = engine.fits(request)
    if not fits[target]:
        trial.revert(place.key)
        return fits.copy()
    trial.put(f"rebalanced/{place.key}", snapshot.uids[target], request.amounts, engine.load(request, target))
    return None


def _describe_steps(
    view: View,
    problem: Problem,
    places: Sequence[MigratableWorkload],
    steps: Sequence[MigrationStep],
    nodes: Sequence[str],
) -> list[PlannedStep]:
    history, planned, state = read_history(view), list[PlannedStep](), State(problem)
    for step in steps:
        before = state.score(), state.spread(), state.far
        state.apply(step.guest, step.target)
        why = ["load is more even"] if state.spread() < before[1] else []
        if state.far < before[2]:
            peer, rate = max(state.peers[step.guest], key=lambda one: one[1])
            why.append(f"nearer to {name_peer(places, step.guest, peer)} ({format_bytes(rate)}/s)")
        reason = f"{' and '.join(why) or 'better'}: score {before[0]:.2f} → {state.score():.2f}"
        size = int(problem.size[step.guest])
        planned.append(plan_step(history, places[step.guest], nodes[step.source], nodes[step.target], reason, size))
    return planned


def name_peer(places: Sequence[MigratableWorkload], guest: int, peer: int) -> str:
    """Name of the peer that a guest talks with, as far as people of the guest's project may know."""
    project = places[guest].spec.workload.project
    known = peer < len(places) and places[peer].spec.workload.project == project
    return name_workload(places[peer].spec.workload) if known else "what it talks with"
