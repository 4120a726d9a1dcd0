"""Samples as people see them: a row for each series that fits a terminal, and what is known so far of a watch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.cli.metrics.plot import draw_sparkline, format_value
from weft.cli.output.table import GAP, make_columns

COLUMNS = make_columns("SERIES", "NOW>", "MEAN>", "MAX>", "OVER TIME!")
LEAST_WIDTH, MOST_NAME = 8, 28  # of what is drawn, and of a name
NOW_SECONDS = 2.0  # a value that is older is not of now
Answer = dict[str, Any]


class Watched:
    """The series that a watch has brought: those of the last ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._points: dict[tuple[str, str], dict[float, float | None]] = {}

    def add(self, answer: Answer) -> Answer:
        """All that is known with this answer; where it has a point that was known, it counts."""
        for one in answer["series"]:
            points = self._points.setdefault((one["name"], one["unit"]), {})
            points.update(map(tuple, one["points"]))
        times = sorted({at for points in self._points.values() for at in points})
        first = times[-1] - self._seconds if times else 0.0
        times = [at for at in times if at > first]
        series = []
        for (name, unit), points in self._points.items():
            series.append({"name": name, "unit": unit, "points": [[at, points.get(at)] for at in times]})
            self._points[name, unit] = {at: value for at, value in points.items() if at > first}
        span = {"from": times[0], "until": times[-1]} if times else {"from": 0.0, "until": 0.0}
        return {"granularity": answer["granularity"], **span, "series": series}


def list_measured(series: Sequence[Answer]) -> tuple[list[Answer], list[str]]:
    """The series with values, and the names of those whose values all are 0."""
    measured = [one for one in series if any(value is not None for _, value in one["points"])]
    idle = [one["name"] for one in measured if not any(value for _, value in one["points"])]
    return [one for one in measured if one["name"] not in idle], idle


def draw_rows(series: Sequence[Answer], granularity: float, width: int) -> list[list[str]]:
    """The cells of ``COLUMNS``, for series with values, in lines of at most ``width`` signs where that is possible."""
    cells = []
    for one in series:
        values = [value for _, value in one["points"]]
        known = [value for value in values if value is not None]
        recent = values[-max(1, round(NOW_SECONDS / granularity)) :]
        now = next((value for value in reversed(recent) if value is not None), None)
        shown = (now, sum(known) / len(known), max(known))
        cells.append([_name(one), *(format_value(value, one["unit"]) for value in shown)])
    taken = sum(max(map(len, column)) for column in zip(("SERIES", "NOW", "MEAN", "MAX"), *cells, strict=True))
    left = max(LEAST_WIDTH, width - taken - len(GAP) * (len(COLUMNS) - 1))
    lines = [draw_sparkline([value for _, value in one["points"]], left) for one in series]
    return [[*row, line] for row, line in zip(cells, lines, strict=True)]


def _name(one: Answer) -> str:
    """The name with the unit, where the values don't have it; in the middle of a long one signs are left out."""
    name = f"{one['name']} ({one['unit']})" if one["unit"] == "cores" else str(one["name"])
    last = name.rpartition(".")[2]
    left = MOST_NAME - len(last) - 2
    return name if len(name) <= MOST_NAME else f"{name[:left]}….{last}"
