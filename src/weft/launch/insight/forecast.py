"""``weft simulate forecast``: how far off weft's forecasts of series from a file would have been. Needs no server, no root."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from weft.insight.forecast.forecaster import LEAST_SAMPLES, Forecaster
from weft.launch.insight.trace import Trace, read_trace
from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_duration, parse_duration

USUAL_HORIZON = 3600.0


def add_command(commands: Any) -> None:
    """The words of the command, for ``weft simulate``."""
    command = commands.add_parser(
        "forecast",
        help="forecast series from a file, each sample from those before it",
        description="Forecast series from a file: each sample from those before it, with an 80 % interval.",
        epilog="Columns, method and the answer: docs/reference/simulate.md.",
    )
    command.add_argument("--trace", type=Path, required=True, metavar="FILE", help="the series, also as .gz")
    command.add_argument("--format", choices=["csv"], default="csv", help="columns series, time in s, value (default)")
    command.add_argument(
        "--horizon", default="60m", metavar="TIME", help="how far ahead, in whole steps of the file (default 60m)"
    )
    command.add_argument("-o", "--output", choices=["table", "json", "yaml"], default="table", help="output format")


def run(options: argparse.Namespace, report: Callable[[int], None]) -> tuple[dict[str, Any], str]:
    """The answer for programs, and for people. Raises NotFound, InvalidInput."""
    seconds = parse_duration(options.horizon, "--horizon")
    if seconds <= 0:
        raise InvalidInput(f"--horizon {options.horizon} is not ahead", field="--horizon", hint="--horizon 60m")
    trace = read_trace(options.trace)
    horizon = round(seconds / trace.step_seconds)
    step = format_duration(trace.step_seconds)
    if horizon < 1 or abs(horizon * trace.step_seconds - seconds) > 0.01 * seconds:
        raise InvalidInput(
            f"--horizon {options.horizon} is not a whole number of steps of {step}",
            field="--horizon",
            hint=f"--horizon {step}",
        )
    length = trace.values.shape[1]
    if length < LEAST_SAMPLES + horizon:
        raise InvalidInput(
            f"the longest series has {length} samples, but a forecast {options.horizon} ahead takes"
            f" {LEAST_SAMPLES + horizon} to begin with",
            field="--horizon",
            hint=f"give longer series, or a shorter horizon, like --horizon {step}",
        )
    answer = measure(trace, horizon, report)
    return answer, _write_table(answer, options.horizon)


def measure(trace: Trace, horizon: int, report: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """The errors of all forecasts, as means over each series' own mean: docs/reference/simulate.md."""
    values = trace.values
    many, length = values.shape
    forecaster = Forecaster(many, trace.step_seconds, horizon)
    missed, walked, held, rounds = (np.zeros(many) for _ in range(4))
    for at in range(length - horizon):
        forecaster.put(values[:, at])
        report(at + 1)
        forecast = forecaster.forecast()
        if forecast is None:
            continue
        outcome, last = values[:, at + horizon], values[:, at]
        known = ~np.isnan(outcome) & ~np.isnan(last)
        missed += np.where(known, np.abs(outcome - forecast.value), 0.0)
        walked += np.where(known, np.abs(outcome - last), 0.0)
        held += known & (outcome >= forecast.low) & (outcome <= forecast.high)
        rounds += known
    judged = rounds > 0
    if not judged.any():
        raise InvalidInput("no sample of the file could be forecast: its series are too short, or have gaps only")
    each = (np.mean(total[judged] / rounds[judged]) for total in (missed, held, walked))
    error, coverage, baseline = (float(mean) for mean in each)
    return {
        "mean_absolute_error": round(error, 6),
        "coverage_80": round(coverage, 4),
        "baseline_last_value": round(baseline, 6),
        "series": int(judged.sum()),
        "forecasts": int(rounds.sum()),
    }


def _write_table(answer: dict[str, Any], horizon: str) -> str:
    error, baseline = answer["mean_absolute_error"], answer["baseline_last_value"]
    rows = [
        ("forecasts", f"{answer['forecasts']:,} of {answer['series']:,} series, {horizon} ahead"),
        ("mean absolute error", f"{error:.4g}"),
        ("of the last value", f"{baseline:.4g}" + (f" ({error / baseline:.2f} of it)" if baseline else "")),
        ("in the 80 % interval", f"{100 * answer['coverage_80']:.1f} %"),
    ]
    return "\n".join(f"{name:22}  {value}" for name, value in rows)
