"""Expectation by a profile for the hours to come: use hour by hour, when a node will be short of cores, and when a guest does
least.

Between the horizons that are forecast, values are interpolated; where a cycle is sure enough, they follow it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from weft.contracts.history import Floats
from weft.kinds.profile import Pattern, Prediction, ProfileStatus
from weft.objects.quantity import format_duration, format_time

HOUR_SECONDS = 3600.0
SURE = 0.9  # the confidence of a cycle from which it is acted on
SHORT, CALM = (
    0.9,
    0.8,
)  # shares of a node's cores: above the first it is short of them, below the second it isn't any more
HOURS_RUNNING = 2  # above SHORT, before anything is planned
NEAR_HOURS = (
    4  # as far ahead as a shortage is looked for without a cycle: later hours are what is usual, and widely uncertain
)
STALE_SECONDS = 3 * HOUR_SECONDS  # a profile that was looked at longer ago forecasts nothing
FADE_SECONDS = 4 * HOUR_SECONDS  # in which the difference between now and the usual cycle falls to a third
WINDOW_SECONDS = 1800.0


class Course(msgspec.Struct, frozen=True):
    """Expected use at moments ahead (h), and its upper end, which nine of ten stay below, in the profile's unit."""

    value: Floats
    high: Floats


class Shortage(msgspec.Struct, frozen=True):
    """Shortage from hour ``first`` to ``last`` (0 begins now): the upper end of a node's use is beyond SHORT of ``full``, and in
    the worst of these hours the expected use itself: by its upper end alone, half of what is planned would be needless."""

    first: int
    last: int
    full: float
    course: Course

    @property
    def excess(self) -> float:
        """How much must go, so that no hour is beyond SHORT."""
        return float(self.course.high[self.first : self.last + 1].max()) - SHORT * self.full


class TimeWindow(msgspec.Struct, frozen=True):
    """A time to do something in, in unix seconds. ``quality``: 0, any time is as good, to 1."""

    start: float
    end: float
    quality: float
    reason: str


def expect(status: ProfileStatus, now: float, ahead: Sequence[float]) -> Course | None:
    """The course at ``now`` + each of ``ahead`` (seconds). None: nothing is forecast, or the profile is old."""
    if not status.prediction or now - status.looked_at > STALE_SECONDS:
        return None
    made = status.sampled_at or status.looked_at
    known = sorted(status.prediction.values(), key=lambda one: one.seconds)
    times = np.asarray(ahead, dtype=np.float64) + (now - made)
    value, high = (_interpolate(known, times, name) for name in ("value", "high"))
    cycle = find_cycle(status)
    if cycle is not None:
        near = min(known, key=lambda one: abs(one.seconds - HOUR_SECONDS))
        off = near.value - float(_fold(cycle, np.array([made + near.seconds]))[0])
        after = np.maximum(0.0, times - near.seconds)
        usual = _fold(cycle, made + times) + off * np.exp(-after / FADE_SECONDS)
        margin = np.maximum(0.0, high - value)
        value = np.maximum(0.0, usual)
        high = value + margin
    return Course(value, high)


def find_cycle(status: ProfileStatus, least: float = SURE) -> Pattern | None:
    """The surest cycle, if it is sure enough."""
    sure = [one for one in status.patterns if one.confidence >= least and one.fold and one.cycle_seconds > 0]
    return max(sure, key=lambda one: one.confidence, default=None)


def find_shortage(status: ProfileStatus, now: float, hours: int = 24) -> Shortage | None:
    """The first time that the node of a profile will be short of cores for HOURS_RUNNING; None: it won't be, or nobody knows."""
    hours = hours if find_cycle(status) is not None else min(hours, NEAR_HOURS)
    course = expect_hours(status, now, hours)
    if course is None or status.full <= 0 or status.unit != "cores":
        return None
    beyond = course.high > SHORT * status.full
    for first in range(hours - HOURS_RUNNING + 1):
        if beyond[first : first + HOURS_RUNNING].all():
            last = first
            while last + 1 < hours and beyond[last + 1]:
                last += 1
            if course.value[first : last + 1].max() > SHORT * status.full:
                return Shortage(first, last, status.full, course)
    return None


def is_urgent(status: ProfileStatus, short: Shortage) -> bool:
    """Whether there is no time to see it at a second look, an hour later: by a sure cycle it has begun by then, and not only the
    upper end, but the expected use itself is beyond SHORT for HOURS_RUNNING."""
    beyond = short.course.value[short.first : short.last + 1] > SHORT * short.full
    lasts = any(beyond[at : at + HOURS_RUNNING].all() for at in range(len(beyond) - HOURS_RUNNING + 1))
    return short.first <= 1 and lasts and find_cycle(status) is not None


def is_calm(status: ProfileStatus, now: float, hours: int = 24) -> bool:
    """Whether a forecast is there, and what is expected stays below CALM, or its upper end below SHORT."""
    course = expect_hours(status, now, hours)
    if course is None or status.full <= 0:
        return False
    return bool((course.value < CALM * status.full).all() or (course.high < SHORT * status.full).all())


def expect_hours(status: ProfileStatus, now: float, hours: int) -> Course | None:
    """The course at the middle of each hour from now on."""
    return expect(status, now, [(hour + 0.5) * HOUR_SECONDS for hour in range(hours)])


def choose_window(
    status: ProfileStatus | None, earliest: float, latest: float, seconds: float = WINDOW_SECONDS
) -> TimeWindow:
    """Window between two moments in which the guest of a profile does least, for what takes ``seconds``; without a cycle the
    earliest."""
    length = min(max(seconds, WINDOW_SECONDS), max(0.0, latest - earliest))
    cycle = find_cycle(status, 0.0) if status is not None else None
    if cycle is None:
        return TimeWindow(earliest, earliest + length, 0.0, "no cycle found: any time is as good")
    starts = np.arange(earliest, max(earliest, latest - length) + 1.0, WINDOW_SECONDS)
    uses = [_mean_fold(cycle, start, length) for start in starts.tolist()]
    start = float(starts[int(np.argmin(uses))])
    return TimeWindow(start, start + length, *judge(status, start, start + length))


def judge(status: ProfileStatus | None, start: float, end: float) -> tuple[float, str]:
    """How good a time is for what disturbs the guest of a profile, 0 to 1, and why."""
    cycle = find_cycle(status, 0.0) if status is not None else None
    if cycle is None:
        return 0.0, "no cycle found: any time is as good"
    mean = float(np.mean(cycle.fold))
    use = _mean_fold(cycle, start, max(1.0, end - start))
    quality = cycle.confidence * (1.0 - use / mean) if mean > 0 else 0.0
    what = f"cycle {format_duration(cycle.cycle_seconds)}, confidence {cycle.confidence:.2f}"
    if quality <= 0:
        return 0.0, f"use is not lower than usual then ({what})"
    part = f"{use / mean:.0%} of its mean" if mean > 0 else "as always"
    return round(min(1.0, quality), 2), f"use is low from {format_time(start)} to {format_time(end)}: {part} ({what})"


def _interpolate(known: Sequence[Prediction], times: Floats, name: str) -> Floats:
    found: Floats = np.interp(times, [one.seconds for one in known], [float(getattr(one, name)) for one in known])
    return found


def _fold(cycle: Pattern, at: Floats) -> Floats:
    """The usual value at moments (unix seconds)."""
    parts = len(cycle.fold)
    place = ((at - cycle.fold_at) / cycle.cycle_seconds * parts - 0.5) % parts
    values = np.array([*cycle.fold, cycle.fold[0]])
    found: Floats = np.interp(place, np.arange(parts + 1), values)
    return found


def _mean_fold(cycle: Pattern, start: float, seconds: float) -> float:
    points = max(2, math.ceil(seconds / 300.0))
    return float(_fold(cycle, start + seconds * (np.arange(points) + 0.5) / points).mean())
