"""The last week with the day that is expected behind it, and each cycle folded, as signs. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from weft.cli.metrics.plot import Value, format_value
from weft.cli.output.time_scale import make_scale, write_scale

_EIGHTHS = "▁▂▃▄▅▆▇█"
_BAND, _VALUE = "░", "×"
_DAY = 86_400.0
Points = Sequence[tuple[float, float]]


def draw_week(
    points: Points, start: float, now: float, prediction: Mapping[str, Any], unit: str, width: int, height: int
) -> list[str]:
    """``points``: (unix seconds, value). Behind ``now`` the forecasts: ``×`` the value, ``░`` the 80 % interval."""
    ahead = sorted(prediction.values(), key=lambda one: float(one["seconds"]))
    span = ahead[-1]["seconds"] if ahead else 0.0
    values = [value for _, value in points]
    top = max([*values, *(one["high"] for one in ahead)], default=0.0) or 1.0
    marks = [format_value(top * part / height, unit) for part in range(height, 0, -1)]
    margin = max(map(len, marks))
    across = max(10, width - margin - 3)
    scale = make_scale(start, now + span, 10)
    scale = scale._replace(first=start, last=now + span)
    here = max(1, min(across, round(scale.place(now) * across)))
    past = _place(points, start, now, here)
    columns = [_draw_bar(value, top, height) for value in past]
    columns += [_draw_band(ahead, (at + 0.5) / (across - here) * span, top, height) for at in range(across - here)]
    lines = _join(columns, marks, margin, height)
    times = write_scale(scale, across)
    lines += [f"{'0':>{margin}} └{'─' * here}{'┄' * (across - here)}", f"{'':>{margin}}  {times}".rstrip()]
    return lines


def draw_fold(pattern: Mapping[str, Any], unit: str, width: int, height: int) -> list[str]:
    """The median cycle: a daily one from midnight to midnight by the local clock, others from a moment that is told."""
    fold, cycle, begun = list(pattern["fold"]), float(pattern["cycle_seconds"]), float(pattern["fold_at"])
    if not fold:
        return []
    if abs(cycle / _DAY - 1) < 0.03:
        midnight = datetime.fromtimestamp(begun).astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        shift = round((midnight.timestamp() - begun) % cycle / cycle * len(fold)) % len(fold)
        fold, first, last = fold[shift:] + fold[:shift], "00:00", "24:00"
    else:
        first = f"{datetime.fromtimestamp(begun).astimezone():%a %H:%M}"
        last = f"{datetime.fromtimestamp(begun + cycle).astimezone():%a %H:%M}"
    top = max(fold) or 1.0
    marks = [format_value(top * part / height, unit) for part in range(height, 0, -1)]
    margin = max(map(len, marks))
    across = max(10, min(width - margin - 3, 2 * len(fold)))
    shown = [fold[at * len(fold) // across] for at in range(across)]
    lines = _join([_draw_bar(value, top, height) for value in shown], marks, margin, height)
    gap = " " * max(1, across - len(first) - len(last))
    return [*lines, f"{'0':>{margin}} └{'─' * across}", f"{'':>{margin}}  {first}{gap}{last}"]


def _place(points: Points, start: float, end: float, width: int) -> list[Value]:
    """The greatest value of each equal part of the time; None where there is none."""
    parts: list[list[float]] = [[] for _ in range(width)]
    for at, value in points:
        if start <= at <= end and math.isfinite(value):
            parts[min(width - 1, int((at - start) / max(1.0, end - start) * width))].append(value)
    return [max(part) if part else None for part in parts]


def _draw_bar(value: Value, top: float, height: int) -> str:
    """A column from the bottom up."""
    if value is None:
        return " " * height
    eighths = max(1, min(8 * height, round(value / top * 8 * height)))
    return "".join(" " if eighths <= 8 * row else _EIGHTHS[min(8, eighths - 8 * row) - 1] for row in range(height))


def _draw_band(ahead: Sequence[Mapping[str, Any]], seconds: float, top: float, height: int) -> str:
    value, low, high = (_between(ahead, part, seconds) / top * height for part in ("value", "low", "high"))
    at = min(height - 1, int(value))
    return "".join(
        _VALUE if row == at else _BAND if low < row + 1 and high > row and high > low else " " for row in range(height)
    )


def _between(ahead: Sequence[Mapping[str, Any]], part: str, seconds: float) -> float:
    """Interpolate on the line from one forecast to the next."""
    before = ahead[0]
    for one in ahead:
        if one["seconds"] >= seconds:
            share = (seconds - before["seconds"]) / max(1e-9, one["seconds"] - before["seconds"])
            return float(before[part] + max(0.0, min(1.0, share)) * (one[part] - before[part]))
        before = one
    return float(before[part])


def _join(columns: Sequence[str], marks: Sequence[str], margin: int, height: int) -> list[str]:
    lines = []
    for row in range(height - 1, -1, -1):
        mark = marks[height - 1 - row] if row % 2 == (height - 1) % 2 else ""
        lines.append(f"{mark:>{margin}} ┤{''.join(column[row] for column in columns)}".rstrip())
    return lines
