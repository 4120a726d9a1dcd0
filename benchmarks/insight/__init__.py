"""How good weft's forecasts, cycles and anomalies are, on real series and on drawn ones."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import numpy as np

from benchmarks.insight import classes, profiles
from benchmarks.insight.drawn import WEEK, draw
from benchmarks.insight.nab import Files, read_files, score, validate
from benchmarks.insight.traces import read_bitbrains, read_planetlab
from benchmarks.insight.uneventful import measure_rates
from benchmarks.measurement import ROOT, Figure, Measurement
from weft.contracts.history import Floats
from weft.insight.anomalies import PIECES, SENSITIVE, THRESHOLD, Detector, Novelty
from weft.insight.cycles import REPORT, find_cycles
from weft.launch.insight.forecast import measure as measure_forecasts
from weft.launch.insight.trace import Trace

DATA = Path(os.environ.get("WEFT_DATA", ROOT.parent / "shared" / "data"))
STEP_SECONDS = 300.0
SERIES, SEED = 500, 2026
THRESHOLDS = [round(0.8 + 0.1 * step, 1) for step in range(25)]
DRAWS, WEEKS = 5, 4  # of each kind of series without anomalies


def measure() -> Measurement:
    days, months, files = read_planetlab(DATA), read_bitbrains(DATA), read_files(DATA)
    if not (days and months and files):
        found = (("planetlab", days), ("bitbrains", months), ("nab", files))
        missing = ", ".join(name for name, read in found if not read)
        raise SystemExit(f"{DATA} has no {missing}: set WEFT_DATA to the folder that holds these data sets")
    figures = _measure_forecasts("PlanetLab", days, (4.55, 4.70)) + _measure_forecasts(
        "Bitbrains", months, (0.80, 2.33)
    )
    figures += _measure_anomalies(files)
    figures += _measure_cycles()
    figures.append(classes.measure_drawn())
    figures.append(classes.measure_real(months))
    figures += profiles.measure()
    return Measurement(
        "insight",
        "Forecasts of each sample from those before it; cycles in drawn weeks; anomalies by NAB's standard profile; classes;"
        " and what profiles cost, with the real controller, process and database.",
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


def _measure_anomalies(files: Files) -> list[Figure]:
    choices = {pieces: _judge_files(files, pieces) for pieces in (PIECES, PIECES[:1], (*PIECES, 4 * PIECES[-1]))}
    reached, quiet = (score(files, choices[PIECES], threshold) for threshold in (SENSITIVE, THRESHOLD))
    chosen = validate(files, [choices[PIECES]], THRESHOLDS)
    nested = validate(files, list(choices.values()), THRESHOLDS)
    rates = measure_rates(THRESHOLD, DRAWS, WEEKS, SEED)
    worst = max(rates.values())
    return [
        Figure(
            f"anomalies, NAB's standard profile, {len(files)} files; threshold by the other families",
            f"{chosen:.1f} (lengths of pieces too: {nested:.1f}; at {SENSITIVE:g}: {reached:.1f})",
            goal="≥ 72",
            kept=chosen >= 72,
        ),
        Figure(f"…: at the threshold for people, {THRESHOLD:g}", f"{quiet:.1f}", goal="≥ 55", kept=quiet >= 55),
        Figure(
            "…: false alarms a week on drawn series",
            ", ".join(f"{kind} {rate:.2f}" for kind, rate in rates.items()),
            goal="≤ 0.3 each",
            kept=worst <= 0.3,
        ),
        _measure_detector(max((values for _, values, _ in files.values()), key=len)),
    ]


def _measure_detector(values: list[float]) -> Figure:
    detector, begun = Detector(), time.process_time()
    for value in values:
        detector.put(value)
    each = (time.process_time() - begun) / len(values)
    past = np.array(values[-WEEK:])
    begun = time.process_time()
    Detector().learn(past)
    learnt = time.process_time() - begun
    tracemalloc.start()
    held = Detector()
    for value in values[: 2 * WEEK]:
        held.put(value)
    kilobytes = tracemalloc.get_traced_memory()[0] / 1000
    tracemalloc.stop()
    return Figure(
        "…: CPU of a sample; of a week at once; memory of a series",
        f"{1e6 * each:.0f} µs; {1000 * learnt:.0f} ms; {kilobytes:.0f} kB",
        goal="≤ 60 µs, ≤ 200 kB",
        kept=each <= 60e-6 and kilobytes <= 200,
    )


def _judge_files(files: Files, pieces: tuple[int, ...]) -> dict[str, list[float]]:
    scores = {}
    for name, (_, values, _) in files.items():
        novelty = Novelty(pieces)
        scores[name] = [novelty.put(value) for value in values]
    return scores


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
