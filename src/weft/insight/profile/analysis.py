"""One look at many workloads: their series in, what their profiles say out. Pure, and bytes at both ends, so that another process
may do it: a few milliseconds of a core for each workload, and a tenth of a second where cycles are looked for too."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from weft.contracts.history import Floats
from weft.insight.anomalies import LEARNING_SAMPLES, Detector
from weft.insight.classes import classify
from weft.insight.correlation import LEAST_SAMPLES as LEAST_CORRELATED
from weft.insight.correlation import correlate, correlate_between, least_related
from weft.insight.cycles import LEAST_SAMPLES as LEAST_CYCLED
from weft.insight.profile.patterns import Series, find_patterns
from weft.insight.profile.prediction import HORIZONS, Predicted, predict
from weft.insight.stability import measure_stability
from weft.kinds.profile import MOST_CORRELATIONS, Anomaly, Correlation, Pattern, Prediction, Signature

STEP_SECONDS = 300.0
LONG_STEP_SECONDS = 1800.0
DAY_SAMPLES = 288
STALE_SAMPLES = 3  # without any, the workload doesn't run: nothing is forecast of it
_LEAST_FULL = 1e-9


class Table(msgspec.Struct, array_like=True):
    """Rows of numbers, as float32: half a megabyte for 64 weeks of five minutes."""

    rows: int
    columns: int
    numbers: bytes

    @staticmethod
    def of(values: Floats) -> Table:
        return Table(values.shape[0], values.shape[1], values.astype(np.float32).tobytes())

    def read(self) -> Floats:
        return np.frombuffer(self.numbers, np.float32).reshape(self.rows, self.columns).astype(np.float64)


class Subject(msgspec.Struct, array_like=True):
    """A workload or a node. ``fresh``: how many of the newest samples nobody has judged. ``silent``: how many of these come too
    soon after an alarm. ``full``: as much as it may use, 0: nobody knows."""

    full: float = 0.0
    fresh: int = 0
    silent: int = 0
    project: str = ""
    name: str = ""  # KIND/NAME


class Search(msgspec.Struct, array_like=True):
    """Search of a subject (its row) whose cycles are looked for: a month in half hours (NaN where it isn't known), and the last day
    of each resource."""

    row: int
    month: Table
    resources: list[str]
    day: Table


class Peers(msgspec.Struct, array_like=True):
    """The last day of the workloads of one project."""

    names: list[str]
    day: Table


class Batch(msgspec.Struct, array_like=True):
    """``week``: a row for each subject, a column every STEP_SECONDS, the first at ``start`` (unix seconds)."""

    now: float
    start: float
    month_start: float
    subjects: list[Subject]
    week: Table
    searches: list[Search] = []
    peers: dict[str, Peers] = {}  # by project


class Searched(msgspec.Struct):
    patterns: list[Pattern]
    signature: Signature
    correlations: list[Correlation]


class Finding(msgspec.Struct):
    """Findings about one subject. ``searched``: None where nobody asked for it. ``anomalies``: among the fresh samples, the newest
    first."""

    samples: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    prediction: dict[str, Prediction] = {}
    stability: float | None = None
    anomalies: list[Anomaly] = []
    searched: Searched | None = None
    missing: dict[str, str] = {}


def analyse(data: bytes) -> bytes:
    """A Batch in, a Finding for each of its subjects out; both as MessagePack."""
    return msgspec.msgpack.encode(inspect(msgspec.msgpack.decode(data, type=Batch)))


def inspect(batch: Batch) -> list[Finding]:
    """A finding of each subject, in their order."""
    week = batch.week.read()
    predicted = predict(week, STEP_SECONDS)
    searches = {search.row: search for search in batch.searches}
    found = []
    for row, subject in enumerate(batch.subjects):
        known = np.flatnonzero(~np.isnan(week[row]))
        finding = Finding(samples=len(known))
        if len(known):
            finding.first_at = batch.start + int(known[0]) * STEP_SECONDS
            finding.last_at = batch.start + int(known[-1]) * STEP_SECONDS
            _add_forecasts(finding, week[row], known, predicted[row], subject.full)
            finding.anomalies = find_anomalies(week[row], subject, batch.start)
        _add_missing(finding, week.shape[1], known)
        if row in searches and len(known):
            finding.searched = _search(week[row], searches[row], subject, batch)
        found.append(finding)
    return found


def _add_forecasts(finding: Finding, row: Floats, known: np.ndarray, predicted: Predicted, full: float) -> None:
    if len(row) - 1 - int(known[-1]) >= STALE_SAMPLES:
        return
    finding.prediction = predicted.prediction
    if not math.isnan(predicted.error):
        day = row[-DAY_SAMPLES:]
        usual = float(np.nanmedian(day)) if not np.isnan(day).all() else 0.0
        whole = full or max(float(np.nanmax(row)), _LEAST_FULL)
        stability = measure_stability(np.array([predicted.error]), np.array([max(0.0, usual)]), whole)
        finding.stability = round(float(stability[0]), 3)


def _add_missing(finding: Finding, columns: int, known: np.ndarray) -> None:
    if not len(known):
        why = "no history: nothing was measured in the last week"
        finding.missing = dict.fromkeys(("prediction", "patterns", "signature", "anomalies"), why)
        return
    samples = columns - int(known[0])
    if columns - 1 - int(known[-1]) >= STALE_SAMPLES:
        finding.missing["prediction"] = (
            "nothing was measured in the last minutes: it doesn't run, or its node is silent"
        )
    else:
        for horizon in HORIZONS:
            if horizon.name not in finding.prediction:
                finding.missing[f"prediction.{horizon.name}"] = f"less than {horizon.words} of history"
    if samples < LEAST_CYCLED:
        finding.missing["patterns"] = "less than four hours of history"
    elif len(known) < samples / 2:
        finding.missing["patterns"] = finding.missing["signature"] = "more gaps than samples"
    if samples < DAY_SAMPLES:
        finding.missing["signature"] = "less than a day of history"
    if len(known) <= LEARNING_SAMPLES:
        finding.missing["anomalies"] = "less than a day of history"


def find_anomalies(row: Floats, subject: Subject, start: float) -> list[Anomaly]:
    """Anomalies among the fresh samples, the newest first; the first sample is at ``start``."""
    if subject.fresh <= 0:
        return []
    begin = len(row) - min(subject.fresh, DAY_SAMPLES)
    detector = Detector()
    detector.learn(row[:begin], subject.silent)
    found = []
    for at in range(begin, len(row)):
        one = detector.put(float(row[at]))
        if one.is_alarm:
            low, high = one.usual
            found.append(
                Anomaly(
                    at=start + at * STEP_SECONDS,
                    channel=one.channel,
                    value=float(f"{row[at]:.6g}"),
                    low=float(f"{low:.6g}"),
                    high=float(f"{high:.6g}"),
                    score=round(min(one.score, 1e6), 2),
                )
            )
    return found[::-1]


def _search(row: Floats, search: Search, subject: Subject, batch: Batch) -> Searched:
    week = Series(row, batch.start, STEP_SECONDS)
    month = Series(search.month.read()[0], batch.month_start, LONG_STEP_SECONDS)
    patterns, cycles = find_patterns(week, month, batch.now)
    told = classify(row, cycles, STEP_SECONDS, subject.full)
    signature = Signature(class_=told.class_, probability=round(told.probability, 3))
    related = [*_correlate_resources(search), *_correlate_peers(row[-DAY_SAMPLES:], search, subject, batch)]
    related.sort(key=lambda one: -abs(one.correlation))
    return Searched(patterns, signature, related[:MOST_CORRELATIONS])


def _correlate_resources(search: Search) -> list[Correlation]:
    day = search.day.read()
    samples = _count_common(day)
    if samples < LEAST_CORRELATED:
        return []
    matrix = correlate(day)
    least = least_related(samples, len(day) * (len(day) - 1) // 2)
    return [
        Correlation(resource=search.resources[a], other=search.resources[b], correlation=_bound(matrix[a, b]))
        for a in range(len(day))
        for b in range(a + 1, len(day))
        if abs(matrix[a, b]) > least
    ]


def _correlate_peers(day: Floats, search: Search, subject: Subject, batch: Batch) -> list[Correlation]:
    peers = batch.peers.get(subject.project)
    if peers is None or (~np.isnan(day)).sum() < LEAST_CORRELATED or not search.resources:
        return []
    others = peers.day.read()
    found = correlate_between(day[None, -others.shape[1] :], others)[0]
    samples = (~np.isnan(others)).sum(axis=1)
    return [
        Correlation(
            resource=search.resources[0],
            other=search.resources[0],
            workload=name,
            correlation=_bound(found[at]),
        )
        for at, name in enumerate(peers.names)
        if name != subject.name
        and samples[at] >= LEAST_CORRELATED
        and abs(found[at]) > least_related(int(samples[at]), len(peers.names))
    ]


def _bound(correlation: float) -> float:
    """The mean product of what is only nearly of variance 1 may be a little beyond it."""
    return round(max(-1.0, min(1.0, float(correlation))), 3)


def _count_common(rows: Floats) -> int:
    return int((~np.isnan(rows)).all(axis=0).sum()) if len(rows) else 0
