"""The score of the Numenta Anomaly Benchmark (Lavin and Ahmad, 2015), standard profile, written from its description."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from weft.insight.anomalies import LEARNING_SAMPLES, SILENT_SAMPLES

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


def list_alarms(scores: Sequence[float], threshold: float) -> list[int]:
    """The rows in which a detector of that threshold raises an alarm."""
    alarms: list[int] = []
    for row in range(LEARNING_SAMPLES, len(scores)):
        if scores[row] >= threshold and (not alarms or row - alarms[-1] >= SILENT_SAMPLES):
            alarms.append(row)
    return alarms


def judge(files: Files, name: str, alarms: Sequence[int]) -> float:
    """The raw score of one file: at most 1 for a window, -1 for a missed one."""
    times, _, named = files[name]
    spans = [_find_rows(times, *window) for window in named]
    first = min(math.floor(PROBATION_SHARE * len(times)), PROBATION_ROWS)
    judged = [row for row in alarms if row >= first]
    false = [row for row in judged if not any(begin <= row <= end for begin, end in spans)]
    return sum(_judge_window(span, judged) for span in spans) + sum(_judge_false(row, spans) for row in false)


def scale(files: Files, raw: float) -> float:
    """0 for what says nothing, 100 for what finds each window at its beginning and nothing else."""
    windows = sum(len(named) for _, _, named in files.values())
    return 100 * (raw + windows) / (2 * windows)


def score(files: Files, scores: Mapping[str, Sequence[float]], threshold: float) -> float:
    """Standard profile, one threshold for all files."""
    return scale(files, sum(judge(files, name, list_alarms(scores[name], threshold)) for name in files))


def validate(files: Files, choices: Sequence[Mapping[str, Sequence[float]]], thresholds: Sequence[float]) -> float:
    """Leave one family out: choice and threshold by the other families, each scored on the one that was left out. A threshold is
    chosen by the mean of five about it, so that a lucky one isn't."""
    raw = [
        [{name: judge(files, name, list_alarms(scores[name], threshold)) for name in files} for threshold in thresholds]
        for scores in choices
    ]
    total = 0.0
    for family in {_name_family(name) for name in files}:
        others = [name for name in files if _name_family(name) != family]
        found = [
            (sum(of[name] for of in near[at - 2 : at + 3] for name in others), choice, at)
            for choice, near in enumerate(raw)
            for at in range(2, len(thresholds) - 2)
        ]
        _, choice, at = max(found)
        total += sum(raw[choice][at][name] for name in files if _name_family(name) == family)
    return scale(files, total)


def _name_family(name: str) -> str:
    return name.split("/")[0]


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
