"""Answers a Report on a shortage: which VMs leave a node before its forecast use exceeds its cores, where to, and when. Pure but
for the snapshot, which is restored afterwards.

Targets pass the filters of a Migration's own decision, and stay calm by their own forecasts. Without forecasts there is no plan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.informer.view import Item, View
from weft.insight.course import HOUR_SECONDS, Course, Shortage, choose_window, expect_hours, find_shortage
from weft.kinds.migration import ENDED, MIGRATIONS_BY_WORKLOAD, MigrationSpec, MigrationStatus, MigrationWindow
from weft.kinds.profile import NODE_PROFILE, WORKLOAD_PROFILE, ProfileStatus, name_profile
from weft.kinds.project import ProjectSpec
from weft.kinds.rebalance_plan import PlannedStep
from weft.kinds.report import ReportSpec, ReportStatus
from weft.objects.identity import object_key
from weft.objects.quantity import format_cpu, format_time
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.rebalance.ahead import Departure, Shortfall, find_groups, plan_ahead
from weft.scheduler.rebalance.model import Flags, Reals
from weft.scheduler.rebalance.problem import MigratableWorkload, count_local, list_places, plan_step, read_pairs
from weft.scheduler.report.rebalance import try_migration
from weft.scheduler.table.facts import name_for
from weft.scheduler.table.snapshot import Snapshot
from weft.transfer.history import read_history

HOURS = 24
LEAD_SECONDS = 60.0  # until the earliest start, so that capacity is reserved by then
ACCEPT_SECONDS = 1800.0  # that people have at least to accept a proposal in
LAST_SECONDS = 2 * 3600.0  # before the deadline, in which it begins: until then the forecast may change
SPARE_SECONDS = 300.0  # between a migration's end and the shortage
SPARE_FACTOR = 1.5  # of its forecast duration


def preview_shortage(view: View, engine: Engine, asked: ReportSpec, strategy: str, now: float) -> ReportStatus:
    """The migrations ahead of a node's shortage, each with its window."""
    snapshot, node = engine.snapshot, asked.node or ""
    snapshot.settle()
    row = snapshot.names.index(node) if node in snapshot.names else None
    profiles = [_read_profile(view, object_key(NODE_PROFILE.name, None, name)) for name in snapshot.names]
    if row is None or profiles[row] is None:
        return ReportStatus(phase="Done", message=f"nothing is forecast of node {node}")
    profile = profiles[row]
    assert profile is not None
    short = find_shortage(profile, now, HOURS)
    if short is None:
        return ReportStatus(phase="Done", message=f"no shortage of {node} is forecast")
    places = list_places(view, snapshot)
    workloads = [place.spec.workload for place in places]
    asked_of = [
        _read_profile(view, object_key(WORKLOAD_PROFILE.name, one.project, name_profile(one.kind, one.name)))
        for one in workloads
    ]
    courses = [expect_hours(one, now, HOURS) if one is not None and one.unit == "cores" else None for one in asked_of]
    pairs, _ = read_pairs(snapshot, places)
    own = {pair: rate for pair, rate in pairs.items() if max(pair) < len(places)}
    shortfall = _make_shortfall(view, snapshot, row, short, profiles, places, courses, find_groups(own), now)
    with snapshot.trial() as trial:

        def check(guest: int, target: int) -> Flags | None:
            return try_migration(view, engine, trial, places[guest], target, strategy)

        found, lacking = plan_ahead(shortfall, check)
    steps, windows = _describe(view, snapshot, places, asked_of, found, node, short, now)
    numbers = {one.guest: number for number, one in enumerate(found)}
    missing = sum(course is None for place, course in zip(places, courses, strict=True) if place.spec.node == node)
    notes = (
        [f"{missing} VM{'s' * (missing != 1)} there {'has' if missing == 1 else 'have'} no forecast and will stay"]
        if missing
        else []
    )
    notes += [f"{format_cpu(round(lacking, 1))} cores are still lacking"] if lacking > 0.05 else []
    return ReportStatus(
        phase="Done",
        strategy=strategy,
        steps=steps,
        windows=windows,
        groups=[numbers[one.first] for one in found],
        message="; ".join([_describe_shortage(node, short, now), *notes]),
    )


def _make_shortfall(
    view: View,
    snapshot: Snapshot,
    row: int,
    short: Shortage,
    profiles: Sequence[ProfileStatus | None],
    places: Sequence[MigratableWorkload],
    courses: Sequence[Course | None],
    groups: list[list[int]],
    now: float,
) -> Shortfall:
    n, g = len(snapshot), len(places)
    high, full = np.full((n, HOURS), np.nan), np.ones(n)
    for number, profile in enumerate(profiles):
        course = expect_hours(profile, now, HOURS) if profile is not None else None
        full[number] = snapshot.facts[number].capacity[0] / 1000 or 1.0
        if course is not None:
            high[number] = course.high
        elif not (snapshot.allocated[0, number] > 0):
            high[number] = 0.0  # nothing runs there, so nothing was measured
    full[row] = short.full
    use: Reals = np.full((g, HOURS), np.nan)
    mobile = np.zeros(g, dtype=np.bool_)
    for number, (place, course) in enumerate(zip(places, courses, strict=True)):
        if course is not None:
            use[number] = course.value
            mobile[number] = not _is_planned(view, place) and _find_mode(view, place.spec.workload.project) != "off"
        high = _count_planned(view, snapshot, place, high, use[number])
    reachable = [uid not in snapshot.unreachable for uid in snapshot.uids]
    return Shortfall(
        node=row,
        first=short.first,
        last=short.last,
        full=full,
        high=high,
        target=snapshot.online & ~snapshot.cordoned & np.array(reachable, dtype=np.bool_),
        at=np.array([snapshot.index_of(place.spec.node_uid) for place in places], dtype=np.int64),
        use=use,
        size=np.array([place.spec.resources.memory + count_local(place.spec) for place in places], dtype=np.float64),
        mobile=mobile,
        groups=groups,
    )


def _describe(
    view: View,
    snapshot: Snapshot,
    places: Sequence[MigratableWorkload],
    profiles: Sequence[ProfileStatus | None],
    found: Sequence[Departure],
    node: str,
    short: Shortage,
    now: float,
) -> tuple[list[PlannedStep], list[MigrationWindow]]:
    history, steps, windows = read_history(view), list[PlannedStep](), list[MigrationWindow]()
    chosen: dict[int, MigrationWindow] = {}
    for one in found:
        place = places[one.guest]
        size = place.spec.resources.memory + count_local(place.spec)
        reason = _describe_shortage(node, short, now)
        if one.first != one.guest:
            first = name_for(place.spec.workload.project, places[one.first].spec.workload)
            reason = f"with {first}, which it talks with: {reason}"
        step = plan_step(history, place, node, snapshot.names[one.target], reason, size)
        latest = now + short.first * HOUR_SECONDS - SPARE_FACTOR * step.seconds - SPARE_SECONDS
        earliest = max(now + LEAD_SECONDS, latest - LAST_SECONDS)
        proposed = _find_mode(view, place.spec.workload.project) == "propose"
        latest = max(latest, earliest + (ACCEPT_SECONDS if proposed else LEAD_SECONDS))
        window = choose_window(profiles[one.guest], earliest, latest, step.seconds)
        own = MigrationWindow(start=window.start, end=window.end, quality=window.quality, reason=window.reason)
        windows.append(chosen.setdefault(one.first, own))
        steps.append(step)
    return steps, windows


def _describe_missing(count: int) -> str:
    return (
        "1 VM there has no forecast, so it stays" if count == 1 else f"{count} VMs there have no forecast, so they stay"
    )


def _describe_shortage(node: str, short: Shortage, now: float) -> str:
    high = float(short.course.high[short.first : short.last + 1].max())
    when = format_time(now + short.first * HOUR_SECONDS)
    return (
        f"{node} would use up to {format_cpu(round(high, 1))} of {format_cpu(round(short.full, 1))} cores from {when}"
    )


def _is_planned(view: View, place: MigratableWorkload) -> bool:
    found = view.find(MIGRATIONS_BY_WORKLOAD, place.workload.key)
    return any(item.status(MigrationStatus).phase not in ENDED for item in found)


def _count_planned(view: View, snapshot: Snapshot, place: MigratableWorkload, high: Reals, use: Reals) -> Reals:
    """``high`` with a guest also where it is to migrate to."""
    for item in view.find(MIGRATIONS_BY_WORKLOAD, place.workload.key):
        to = item.spec(MigrationSpec).to
        if to in snapshot.names and item.status(MigrationStatus).phase not in ENDED and np.isfinite(use).all():
            high[snapshot.names.index(to)] += use
    return high


def _find_mode(view: View, project: str | None) -> str:
    item: Item | None = view.get(object_key("project", None, project or ""))
    return item.spec(ProjectSpec).plans_ahead if item is not None else ProjectSpec().plans_ahead


def _read_profile(view: View, key: str) -> ProfileStatus | None:
    item = view.get(key)
    return item.status(ProfileStatus) if item is not None else None
