"""How good weft's forecasts, cycles and anomalies are, on real series and on drawn ones."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from benchmarks.insight import classes, profiles
from benchmarks.insight.drawn import draw
from benchmarks.insight.nab import read_files, score
from benchmarks.insight.traces import read_bitbrains, read_planetlab
from benchmarks.measurement import ROOT, Figure, Measurement
from weft.contracts.history import Floats
from weft.insight.anomalies import THRESHOLD, Detector
from weft.insight.cycles import REPORT, find_cycles
from weft.launch.insight.forecast import measure as measure_forecasts
from weft.launch.insight.trace import Trace

DATA = Path(os.environ.get("WEFT_DATA", ROOT.parent / "shared" / "data"))
STEP_SECONDS = 300.0
SERIES, SEED = 500, 2026


def measure() -> Measurement:
    figures = []
    for name, read, goals in (("PlanetLab", read_planetlab, (4.55, 4.70)), ("Bitbrains", read_bitbrains, (0.80, 2.33))):
        values = read(DATA)
        if values is not None:
            figures += _measure_forecasts(name, values, goals)
    files = read_files(DATA)
    if files:
        figures.append(_measure_anomalies(files))
    figures += _measure_cycles()
    figures.append(classes.measure_drawn())
    months = read_bitbrains(DATA)
    if months is not None:
        figures.append(classes.measure_real(months))
    figures += profiles.measure()
    return Measurement(
        "insight",
        "Forecasts of each sample from those before it; cycles in drawn weeks; anomalies by NAB's standard profile; classes;"
        " and what profiles cost, with the real controller, process and database. What has no row had no data here (`WEFT_DATA`).",
        figures,
    )


def _measure_forecasts(name: str, days: list[Floats], goals: tuple[float, float]) -> list[Figure]:
    found = []
    for horizon, goal in zip((1, 12), goals, strict=True):
        begun = time.process_time()
        answers = [measure_forecasts(Trace([""] * len(day), STEP_SECONDS, day), horizon) for day in days]
        seconds = time.process_time() - begun
        weights = [answer["series"] for answer in answers]
        error, last, held = (
            float(np.average([answer[field] for answer in answers], weights=weights))
            for field in ("mean_absolute_error", "baseline_last_value", "coverage_80")
        )
        forecasts = sum(answer["forecasts"] for answer in answers)
        found.append(
            Figure(
                f"{name}, {horizon * 5} minutes ahead, mean absolute error",
                f"{error:.3f} ({100 * held:.1f} % in the 80 % interval; {1e6 * seconds / forecasts:.1f} µs of CPU each)",
                f"last value: {last:.3f}",
                f"{error / last:.3f}×",
                f"≤ {goal:.2f}",
                error <= goal,
            )
        )
    return found


def _measure_anomalies(files: dict[str, tuple[list[str], list[float], list[list[str]]]]) -> Figure:
    scores = {}
    begun = time.process_time()
    for name, (_, values, _) in files.items():
        detector = Detector()
        scores[name] = [detector.put(value).score for value in values]
    each = 1e6 * (time.process_time() - begun) / sum(map(len, scores.values()))
    reached = score(files, scores, THRESHOLD)
    return Figure(
        f"anomalies, NAB's standard profile, {len(files)} files, one threshold",
        f"{reached:.1f} ({each:.0f} µs of CPU a sample)",
        goal="≥ 65",
        kept=reached >= 65,
    )


def _measure_cycles() -> list[Figure]:
    random = np.random.default_rng(SEED)
    right = wrong = drawn = invented = without = 0
    begun = time.process_time()
    for _ in range(SERIES):
        values, periods = draw(random)
        found = find_cycles(values)
        near = [next((p for p in periods if abs(cycle.period / p - 1) < 0.05), None) for cycle in found]
        right += len({p for p in near if p is not None})
        wrong += near.count(None)
        drawn += len(periods)
        without += not periods
        invented += bool(found and not periods)
    seconds = (time.process_time() - begun) / SERIES
    precision, recall = right / max(1, right + wrong), right / max(1, drawn)
    return [
        Figure(
            f"cycles of {SERIES} drawn weeks at confidence {REPORT:g}: precision",
            f"{precision:.3f} ({1000 * seconds:.0f} ms of CPU a week)",
            goal="≥ 0.95",
            kept=precision >= 0.95,
        ),
        Figure("…: recall, of all that were drawn, hidden ones too", f"{recall:.3f}", goal="≥ 0.6", kept=recall >= 0.6),
        Figure(f"…: series with a cycle of {without} without any", f"{invented}", goal="0", kept=invented == 0),
    ]
