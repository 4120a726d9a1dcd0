"""A scale of local times with round ticks, for calendars as text and as a picture. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

_DAY = 86_400
_STEPS = (60, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, _DAY, 2 * _DAY, 7 * _DAY, 14 * _DAY, 28 * _DAY)


class TimeScale(NamedTuple):
    """A scale from ``first`` to ``last``, both ticks (unix seconds)."""

    first: float
    last: float
    ticks: tuple[float, ...]

    def place(self, at: float) -> float:
        """The place of ``at``: 0 at the beginning of the scale, 1 at its end, and never beyond."""
        return (min(max(at, self.first), self.last) - self.first) / (self.last - self.first)

    def label(self, tick: float, before: float | None = None) -> str:
        """The tick for people: a time of day, with the date where that isn't the one of the tick ``before``."""
        here = datetime.fromtimestamp(tick).astimezone()
        day = f"{here.day} {here:%b}"
        if self.ticks[1] - self.ticks[0] >= _DAY:
            return day
        is_same_day = before is not None and datetime.fromtimestamp(before).astimezone().date() == here.date()
        return f"{here:%H:%M}" if is_same_day else f"{day} {here:%H:%M}"


def make_scale(first: float, last: float, most: int) -> TimeScale:
    """The scale that holds ``first`` to ``last`` in at most ``most`` steps, each of a round length by the local clock."""
    for step in _STEPS:
        if last - first > most * step:
            continue  # a long lease has millions of minutes
        scale = _make(first, last, step)
        if len(scale.ticks) - 1 <= most:
            return scale
    return _make(first, last, int((last - first) / max(1, most - 1) / _DAY + 1) * _DAY)


def _make(first: float, last: float, step: int) -> TimeScale:
    offset = datetime.fromtimestamp(first).astimezone().utcoffset()
    east = offset.total_seconds() if offset is not None else 0.0
    begin = (first + east) // step * step - east
    count = max(1, -int((begin - last) // step))
    ticks = tuple(begin + step * number for number in range(count + 1))
    return TimeScale(begin, ticks[-1], ticks)


def find_span(entries: Sequence[Mapping[str, Any]], now: float) -> tuple[float, float]:
    """Find the span that a calendar of ``entries`` shows: from ``now`` to the last end, an hour at least."""
    return now, max([now + 3600.0, *(one["end"] for one in entries if one["end"])])


def write_scale(scale: TimeScale, width: int) -> str:
    """One line of ``width`` characters with as many labels as fit, each above its tick; within a day without the date."""
    line = ""
    is_day = scale.last - scale.first <= _DAY
    before: float | None = None
    for tick in scale.ticks[:-1]:
        at, label = round(scale.place(tick) * width), scale.label(tick, tick if is_day else before)
        if at >= len(line) + (2 if line else 0) and at + len(label) <= width:
            line = line.ljust(at) + label
            before = tick
    return line.ljust(width)


def draw_bar(scale: TimeScale, begin: float, end: float, width: int, sign: str, now: float) -> str:
    """``begin`` to ``end`` as ``sign`` above the scale, at least one; ``│`` is now, where nothing else is."""
    first, last = (round(scale.place(at) * width) for at in (begin, end))
    first = min(first, width - 1)
    cells = [" "] * first + [sign] * max(1, last - first)
    here = min(width - 1, int(scale.place(now) * width))
    line = "".join(cells).ljust(width)
    return line if line[here] != " " else f"{line[:here]}│{line[here + 1 :]}"
