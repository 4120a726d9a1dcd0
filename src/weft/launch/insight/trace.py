"""Series from files: .csv or .csv.gz, columns by name."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np

from weft.contracts.history import Floats
from weft.objects.errors import InvalidInput
from weft.scheduler.simulate.csv_file import Sheet

MOST_CELLS = 40_000_000
LEAST_STEP_SECONDS = 1.0
MOST = 1e15  # of a time or a value, either side of 0


class Trace(msgspec.Struct, frozen=True):
    """``values``: a row for each series, evenly spaced from its own first sample on; NaN in gaps and after its end."""

    names: list[str]
    step_seconds: float
    values: Floats


def read_trace(path: Path) -> Trace:
    """Columns series, time (s), value. Raises NotFound, InvalidInput."""
    sheet = Sheet(path)
    sheet.require("series", "time", "value")
    series, time, value = (sheet.header.index(name) for name in ("series", "time", "value"))
    found: dict[str, list[tuple[float, float]]] = {}
    for row in sheet.rows():
        at = sheet.read("time", row[time], _read_time)
        found.setdefault(row[series], []).append((at, sheet.read("value", row[value], read_value)))
    if not found:
        raise InvalidInput(f"{path}: no samples", hint="each line is a series' name, a time in seconds, and a value")
    for samples in found.values():
        samples.sort()
    return _align(path, found)


def read_timed_values(path: Path) -> tuple[list[str], list[float]]:
    """Columns timestamp (as it stands) and value, a row each. Raises NotFound, InvalidInput."""
    sheet = Sheet(path)
    sheet.require("timestamp", "value")
    timestamp, value = sheet.header.index("timestamp"), sheet.header.index("value")
    rows = [(row[timestamp], sheet.read("value", row[value], read_value)) for row in sheet.rows()]
    if not rows:
        raise InvalidInput(f"{path}: no samples", hint="each line is a timestamp and a value")
    return [when for when, _ in rows], [one for _, one in rows]


def read_value(text: str, column: str) -> float:
    """NaN for an empty cell. Raises InvalidInput."""
    if text.strip().lower() in ("", "nan"):
        return math.nan
    return _read_number(text, column)


def _read_time(text: str, column: str) -> float:
    return _read_number(text, column)


def _read_number(text: str, column: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise InvalidInput(
            f"{column}: {text[:60]!r} is not a number", hint="write it like 0.25; an empty cell is a gap"
        )
    if abs(number) > MOST:
        raise InvalidInput(
            f"{column}: {text[:60]!r} is beyond {MOST:.0e}, which is the most", hint="choose a larger unit"
        )
    return number


def _align(path: Path, found: dict[str, list[tuple[float, float]]]) -> Trace:
    steps = np.concatenate([np.diff([at for at, _ in samples]) for samples in found.values()])
    steps = steps[steps > 0]
    if not len(steps):
        raise InvalidInput(
            f"{path}: no series has two samples at different times",
            field="time",
            hint="times are in seconds, one a row",
        )
    step = float(np.median(steps))
    if step < LEAST_STEP_SECONDS:
        raise InvalidInput(
            f"{path}: samples are {step:g} s apart; {LEAST_STEP_SECONDS:g} s is the least",
            field="time",
            hint="take the mean of each second, or check the unit of its times (seconds)",
        )
    length = max(round((samples[-1][0] - samples[0][0]) / step) + 1 for samples in found.values())
    if length * len(found) > MOST_CELLS:
        raise InvalidInput(
            f"{path}: {len(found)} series over {length} steps of {step:g} s are too many samples",
            hint=f"the most are {MOST_CELLS:,}: split the file, or check the unit of its times (seconds)",
        )
    values = np.full((len(found), length), np.nan)
    for row, samples in zip(values, found.values(), strict=True):
        for at, value in samples:
            row[round((at - samples[0][0]) / step)] = value
    return Trace(list(found), step, values)
