"""A week of 11 nodes with 12 guests each, whose use is PlanetLab's. Seven nodes become short of cores, one more each day: some of
their guests have a daily peak that grows. Profiles, forecasts, shortages and departures are weft's own; time is simulated.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.insight.traces import read_planetlab
from weft.contracts.history import Floats
from weft.controllers.profile.plan import roll
from weft.insight.course import HOUR_SECONDS, SHORT, choose_window, expect_hours, find_shortage, is_calm, is_urgent
from weft.insight.profile.analysis import STEP_SECONDS
from weft.insight.profile.patterns import Series, find_patterns
from weft.insight.profile.prediction import predict
from weft.kinds.profile import Pattern, Prediction, ProfileStatus
from weft.scheduler.rebalance.ahead import Shortfall, plan_ahead
from weft.scheduler.report.shortage import LAST_SECONDS

NODES, SHORT_NODES, GUESTS = 11, 7, 12
BEFORE_DAYS, DAYS, DAY = 4, 7, 288
CORES_OF_GUEST, CORES = 2.0, 10.0
PEAKING, GROWTH = 5, 1.10  # guests of a node that peak, and by how much more each day, until its first shortage
PAST = BEFORE_DAYS * DAY  # samples that a profile is made of
HOUR = 12  # samples
NEEDED_HOURS = 36  # after a migration, in which the node would have been short without it
CALM_LOOKS, REST_HOURS, LOOK_HOURS = 2, 4, 1
GIB = float(1 << 30)


class Week(msgspec.Struct):
    """Shortages are (node, day) with two hours running beyond SHORT; ``without``: of the same week if nothing migrates."""

    without: set[tuple[int, int]]
    within: set[tuple[int, int]]
    migrations: int
    needless: int
    again: int  # guests that migrated back to where they came from
    cancelled: int


class Node(msgspec.Struct):
    planned: list[tuple[int, int, int]] = []  # guest, target, sample
    calm: int = 0
    short_at: int = -1  # the hour of the last look at which a shortage was forecast
    rests_until: int = 0


def draw_week(data: Path, seed: int) -> Floats | None:
    """The cores that each guest uses, a row for each and a column for each sample; None without the data."""
    days = read_planetlab(data)
    if days is None:
        return None
    draw = np.random.default_rng(seed)
    count, total = NODES * GUESTS, BEFORE_DAYS + DAYS
    rows = [days[day % len(days)][draw.permutation(len(days[day % len(days)]))[:count]] for day in range(total)]
    use = np.concatenate(rows, axis=1)[:, : total * DAY] * CORES_OF_GUEST / 100.0
    hours = np.arange(total * DAY) / HOUR
    for node in range(SHORT_NODES):
        own = slice(node * GUESTS, (node + 1) * GUESTS)
        peak, width = float(draw.uniform(9.0, 20.0)), float(draw.uniform(2.0, 3.0))
        first = BEFORE_DAYS + node
        base = float(use[own].sum(axis=0).mean())
        height = (1.02 * CORES - base) * GROWTH ** np.minimum(0.0, hours / 24.0 - first - peak / 24.0)
        shape = np.exp(-0.5 * (((hours % 24.0) - peak) / width) ** 2)
        parts = draw.dirichlet(np.full(PEAKING, 4.0))
        for number, part in enumerate(parts):
            use[node * GUESTS + number] += part * height * shape
    return use


def find_shortages(use: Floats, at: np.ndarray) -> set[tuple[int, int]]:
    """``at``: the node of each guest at each hour (guests, hours)."""
    hours = use.reshape(len(use), -1, HOUR).mean(axis=2)
    found = set()
    for node in range(NODES):
        total = (hours * (at == node)).sum(axis=0)
        beyond = total > SHORT * CORES
        for hour in np.flatnonzero(beyond[1:] & beyond[:-1]).tolist():
            if hour // 24 >= BEFORE_DAYS:
                found.add((node, hour // 24))
    return found


def simulate_week(use: Floats) -> Week:
    count, hours = len(use), use.shape[1] // HOUR
    where = np.repeat((np.arange(count) // GUESTS)[:, None], hours, axis=1)
    without = find_shortages(use, where)
    nodes, profiles = [Node() for _ in range(NODES)], Profiles(use)
    left: dict[int, set[int]] = {}
    migrations = needless = again = cancelled = 0
    for hour in range(BEFORE_DAYS * 24, hours):
        sample = hour * HOUR
        for number, node in enumerate(nodes):
            due = [one for one in node.planned if one[2] < sample]
            node.planned = [one for one in node.planned if one[2] >= sample]
            if due:
                needed = _is_short(use[where[:, hour - 1] == number].sum(axis=0)[sample : sample + NEEDED_HOURS * HOUR])
            for guest, target, _ in due:
                migrations += 1
                needless += not needed
                again += target in left.get(guest, set())
                left.setdefault(guest, set()).add(number)
                where[guest, hour:] = target
        if hour % LOOK_HOURS:
            continue
        statuses = profiles.look(where[:, hour], hour)
        for number, node in enumerate(nodes):
            if node.planned:
                node.calm = node.calm + 1 if is_calm(statuses[number], sample * STEP_SECONDS) else 0
                if node.calm >= CALM_LOOKS:
                    cancelled += len(node.planned)
                    node.planned = []
            elif hour >= node.rests_until:
                node.calm, before = 0, node.short_at
                short = find_shortage(statuses[number], sample * STEP_SECONDS)
                node.short_at = hour if short is not None else -1
                if short is None:
                    continue
                if before != hour - LOOK_HOURS and not is_urgent(statuses[number], short):  # at two looks running
                    continue
                planned = _plan(use, where[:, hour], nodes, statuses, number, sample)
                node.planned = planned or []
                node.rests_until = hour if planned is None or planned else hour + REST_HOURS
    return Week(without, find_shortages(use, where), migrations, needless, again, cancelled)


def _is_short(use: Floats) -> bool:
    beyond = use[: len(use) // HOUR * HOUR].reshape(-1, HOUR).mean(axis=1) > SHORT * CORES
    return bool((beyond[1:] & beyond[:-1]).any())


class Profiles:
    """The nodes' profiles as the controller keeps them: forecasts every hour, cycles once a day and after a node's guests changed.
    The forecasts of a node are made for the rest of the day together, until its guests change."""

    def __init__(self, use: Floats) -> None:
        self._use = use
        self._made: dict[tuple[int, int], tuple[bytes, dict[str, Prediction]]] = {}  # by node and hour
        self._patterns: dict[int, tuple[int, bytes, list[Pattern]]] = {}  # by node, with the hour and who was there

    def look(self, at: np.ndarray, hour: int) -> list[ProfileStatus]:
        members = [(at == number).tobytes() for number in range(NODES)]
        stale = [n for n in range(NODES) if self._made.get((n, hour), (b"", {}))[0] != members[n]]
        ends = min((hour // 24 + 1) * 24, self._use.shape[1] // HOUR)
        if stale:
            keys = [(number, later) for number in stale for later in range(hour, ends, LOOK_HOURS)]
            rows = np.array([self._past(at, number, later) for number, later in keys])
            for key, one in zip(keys, predict(rows, STEP_SECONDS), strict=True):
                self._made[key] = (members[key[0]], one.prediction)
        now = hour * HOUR * STEP_SECONDS
        statuses = []
        for number in range(NODES):
            known = self._patterns.get(number)
            if known is None or known[1] != members[number] or hour - known[0] >= 24:
                found = find_cycles(self._past(at, number, hour), now)
                self._patterns[number] = known = (hour, members[number], found)
            status = describe(self._made[number, hour][1], [roll(one, now) for one in known[2]], CORES, now)
            statuses.append(status)
        return statuses

    def _past(self, at: np.ndarray, number: int, hour: int) -> Floats:
        past: Floats = self._use[at == number, hour * HOUR - PAST : hour * HOUR].sum(axis=0)
        return past


def find_cycles(past: Floats, now: float) -> list[Pattern]:
    start = now - len(past) * STEP_SECONDS
    month = Series(past.reshape(-1, 6).mean(axis=1), start, 6 * STEP_SECONDS)
    return find_patterns(Series(past, start, STEP_SECONDS), month, now)[0]


def describe(prediction: dict[str, Prediction], patterns: list[Pattern], full: float, now: float) -> ProfileStatus:
    sampled_at = now - STEP_SECONDS
    return ProfileStatus(
        looked_at=now, sampled_at=sampled_at, unit="cores", full=full, prediction=prediction, patterns=patterns
    )


def _plan(
    use: Floats, at: np.ndarray, nodes: list[Node], statuses: list[ProfileStatus], number: int, sample: int
) -> list[tuple[int, int, int]] | None:
    """Guest, target and sample of each departure; none if nothing helps, None if no shortage is forecast."""
    now = sample * STEP_SECONDS
    short = find_shortage(statuses[number], now)
    if short is None:
        return None
    own = np.flatnonzero(at == number)
    past = use[own, sample - PAST : sample]
    made = [one.prediction for one in predict(past, STEP_SECONDS)]
    profiles = [
        describe(told, find_cycles(row, now), CORES_OF_GUEST, now) for told, row in zip(made, past, strict=True)
    ]
    courses = [expect_hours(one, now, 24) for one in profiles]
    high = np.full((NODES, 24), math.nan)
    for row, status in enumerate(statuses):
        if (course := expect_hours(status, now, 24)) is not None:
            high[row] = course.high
    found, _ = plan_ahead(
        Shortfall(
            node=number,
            first=short.first,
            last=short.last,
            full=np.full(NODES, CORES),
            high=high,
            target=np.array([not node.planned for node in nodes]),
            at=np.full(len(own), number),
            use=np.array([course.value if course is not None else np.full(24, math.nan) for course in courses]),
            size=np.full(len(own), 4 * GIB),
            mobile=np.array([course is not None for course in courses]),
        ),
        lambda _guest, _target: None,
    )
    planned = []
    for one in found:
        latest = max(now + 120.0, now + short.first * HOUR_SECONDS - 400.0)
        window = choose_window(profiles[one.guest], max(now + 60.0, latest - LAST_SECONDS), latest)
        planned.append((int(own[one.guest]), one.target, int(window.start // STEP_SECONDS)))
    return planned
