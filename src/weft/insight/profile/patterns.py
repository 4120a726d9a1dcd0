"""Cycles as people read them: a name, when the next peaks and troughs are, and the median cycle. Short ones are looked for in the
samples of a week, long ones in half-hour means of a month."""

from __future__ import annotations

import math

import numpy as np

from weft.contracts.history import Floats
from weft.insight.cycles import REPORT, Cycle, find_extremes, weigh_cycles
from weft.insight.cycles import Extreme as Place
from weft.kinds.profile import FOLD_POINTS, MOST_EXTREMES, MOST_PATTERNS, Extreme, Pattern

DAY, WEEK = 86_400.0, 604_800.0
_NAMED = 0.03
_SAME = 0.08
_LONG_SECONDS = 2 * DAY  # longer ones only from a month


class Series:
    """``values`` from its first known sample on, at ``start`` (unix seconds), a sample every ``step`` seconds."""

    def __init__(self, values: Floats, start: float, step: float) -> None:
        known = np.flatnonzero(~np.isnan(values))
        first = int(known[0]) if len(known) else len(values)
        self.values, self.start, self.step = values[first:], start + first * step, step


def find_patterns(week: Series, month: Series | None, now: float) -> tuple[list[Pattern], list[Cycle]]:
    """The surest first; and the cycles in the week's samples, which classes are told by."""
    cycles = [cycle for cycle in weigh_cycles(week.values) if cycle.confidence >= REPORT]
    found = [(week, cycle) for cycle in cycles if cycle.period * week.step <= _LONG_SECONDS]
    if month is not None:
        found += [(month, cycle) for cycle in weigh_cycles(month.values) if cycle.confidence >= REPORT]
    found.sort(key=lambda one: -one[1].confidence)
    kept: list[tuple[Series, Cycle]] = []
    for series, cycle in found:
        seconds = cycle.period * series.step
        if all(abs(seconds / (other.period * at.step) - 1) > _SAME for at, other in kept):
            kept.append((series, cycle))
    return [make_pattern(series, cycle, now) for series, cycle in kept[:MOST_PATTERNS]], cycles


def make_pattern(series: Series, cycle: Cycle, now: float) -> Pattern:
    """``now``: the next peaks are those after it."""
    seconds = cycle.period * series.step
    fold = fold_median(series.values, cycle.period)
    peaks, troughs = find_extremes(cycle)
    begun = series.start + math.floor((now - series.start) / seconds) * seconds

    def place(rough: Place, sign: float) -> Extreme:
        first, last, value = find_half_height(sign * np.array(fold), rough, cycle.period)
        part = seconds / len(fold)
        at = begun + (first + last + 1) / 2 * part
        turns = math.ceil(max(0.0, now - at) / seconds) - math.floor(max(0.0, at - now) / seconds)
        at += turns * seconds
        half = (last + 1 - first) / 2 * part
        return Extreme(at=round(at), start=round(at - half), end=round(at + half), value=sign * value)

    return Pattern(
        type=name_cycle(seconds),
        cycle_seconds=round(seconds),
        confidence=round(cycle.confidence, 3),
        peaks=[place(one, 1.0) for one in peaks[:MOST_EXTREMES]],
        troughs=[place(one, -1.0) for one in troughs[:MOST_EXTREMES]],
        fold=fold,
        fold_at=round(begun),
    )


def find_half_height(fold: Floats, rough: Place, period: float) -> tuple[int, int, float]:
    """The first and the last part of the fold that belong to its top near ``rough``, and the top's value. ``rough`` comes from a
    mean over a sixth of the cycle, and a peak may be shorter than that. The first may be below 0."""
    n = len(fold)
    begin, end = (round(at / period * n) for at in (rough.begin, rough.end))
    near = range(begin, max(begin + 1, min(end + 1, begin + n)))
    top = max(near, key=lambda at: fold[at % n])
    half = fold.min() + (fold[top % n] - fold.min()) / 2
    first = last = top
    while fold[(first - 1) % n] >= half and last - first < n - 1:
        first -= 1
    while fold[(last + 1) % n] >= half and last - first < n - 1:
        last += 1
    return first, last, float(fold[top % n])


def name_cycle(seconds: float) -> str:
    """diurnal, weekly, or every so much."""
    for name, usual in (("diurnal", DAY), ("weekly", WEEK)):
        if abs(seconds / usual - 1) <= _NAMED:
            return name
    left, parts = round(seconds / 60), []
    for unit, minutes in (("d", 1440), ("h", 60), ("min", 1)):
        count, left = divmod(left, minutes)
        parts += [f"{count} {unit}"] if count else []
    return "every " + " ".join(parts[:2])


def fold_median(values: Floats, period: float) -> list[float]:
    """The median of each equal part of the cycle, at most FOLD_POINTS; a part without samples lies between its neighbours."""
    points = max(2, min(FOLD_POINTS, round(period)))
    known = np.flatnonzero(~np.isnan(values))
    part = np.minimum((known % period / period * points).astype(np.int64), points - 1)
    medians = [np.median(values[known[part == at]]) if (part == at).any() else math.nan for at in range(points)]
    folded = np.array(medians)
    there = np.flatnonzero(~np.isnan(folded))
    full = np.interp(np.arange(points), there, folded[there], period=points)
    return [float(f"{value:.6g}") for value in full]
