"""The score of the Numenta Anomaly Benchmark (Lavin and Ahmad, 2015), standard profile, written from its description."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

PROBATION_SHARE, PROBATION_ROWS = 0.15, 750
FALSE_ALARM = 0.11  # of what a missed window costs
_FULL = 0.98661  # what the earliest alarm of a window is worth, before scaling
_FAR_WIDTHS = 3.0
Files = dict[str, tuple[list[str], list[float], list[list[str]]]]


def read_files(data: Path) -> Files:
    """Timestamps, values and windows of each labelled file that is there."""
    labels = data / "nab" / "labels.json"
    found: Files = {}
    for name, known in json.loads(labels.read_text()).items() if labels.exists() else ():
        path = labels.parent / f"{name}.gz"
        if path.exists():
            with gzip.open(path, "rt") as file:
                rows = list(csv.reader(file))[1:]
            found[name] = ([row[0] for row in rows], [float(row[1]) for row in rows], known["windows"])
    return found


def score(files: Files, scores: Mapping[str, Sequence[float]], threshold: float) -> float:
    """0 for what says nothing, 100 for what finds each window at its beginning and nothing else."""
    raw, windows = 0.0, 0
    for name, (times, _, named) in files.items():
        spans = [_find_rows(times, *window) for window in named]
        first = min(math.floor(PROBATION_SHARE * len(times)), PROBATION_ROWS)
        alarms = [row for row in range(first, len(times)) if scores[name][row] >= threshold]
        windows += len(spans)
        raw += sum(_judge_window(span, alarms) for span in spans)
        raw += sum(_judge_false(row, spans) for row in alarms if not any(begin <= row <= end for begin, end in spans))
    return 100 * (raw + windows) / (2 * windows)


def _find_rows(times: Sequence[str], begin: str, end: str) -> tuple[int, int]:
    first, last = datetime.fromisoformat(begin), datetime.fromisoformat(end)
    rows = [row for row, time in enumerate(times) if first <= datetime.fromisoformat(time) <= last]
    return rows[0], rows[-1]


def _judge_window(span: tuple[int, int], alarms: Sequence[int]) -> float:
    begin, end = span
    earliest = next((row for row in alarms if begin <= row <= end), None)
    return -1.0 if earliest is None else _fall(-(end - earliest) / (end - begin)) / _FULL


def _judge_false(row: int, spans: Sequence[tuple[int, int]]) -> float:
    before = [span for span in spans if span[1] < row]
    if not before:
        return -FALSE_ALARM
    begin, end = before[-1]
    widths = (row - end) / (end - begin)
    return FALSE_ALARM * (-1.0 if widths > _FAR_WIDTHS else _fall(widths))


def _fall(place: float) -> float:
    """From nearly 1 at a window's beginning (-1) through 0 at its end (0) to -1 far behind."""
    return 2 / (1 + math.exp(5 * place)) - 1
