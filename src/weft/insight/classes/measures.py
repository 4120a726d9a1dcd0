"""Measures that distinguish classes of workloads: 25 numbers of a series, none of which depends on when it began."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from weft.contracts.history import Floats
from weft.insight.cycles import REPORT, Cycle

NAMES = tuple(
    "mean median p95 p99 cv range_to_mean iqr_to_mean top_tail low_half skew kurtosis step acf_1 acf_12 acf_72 slope tau"
    " above_middle on_run off_run middle_half cycle_confidence cycle_share segments idle_share".split()
)
IDLE_PER_CENT = 2.0
SEGMENTS = 24
_LEAST_MEAN = 0.05  # per cent: what is near 0 is not divided by
_MOST = 1e3  # of a ratio


def measure(values: Floats, cycles: Sequence[Cycle]) -> Floats:
    """Shape (25,), in the order of NAMES. ``values``: per cent of what the workload may use, a sample every five minutes, at least
    SEGMENTS of them, without gaps. ``cycles``: what ``find_cycles`` found in them; less sure ones count for nothing."""
    low, first, p25, p50, p75, p95, p99, top = np.quantile(values, (0, 0.01, 0.25, 0.5, 0.75, 0.95, 0.99, 1)).tolist()
    mean, spread, width = float(values.mean()), float(values.std()), top - low
    about = max(abs(mean), _LEAST_MEAN)
    is_constant = spread <= 1e-9 * (1 + abs(top))
    x = np.zeros_like(values) if is_constant else (values - mean) / spread
    middle = (low + top) / 2
    is_on = values > middle
    on, off = _measure_runs(is_on)
    means = np.array([part.mean() for part in np.array_split(x, SEGMENTS)])
    at = np.linspace(-0.5, 0.5, len(x))
    sure = [cycle for cycle in cycles if cycle.confidence >= REPORT]
    found = [
        mean, p50, p95, p99, spread / about, width / about, (p75 - p25) / about,
        0.0 if is_constant else (p99 - p95) / width, 0.0 if is_constant else (p50 - first) / width,
        float((x**3).mean()), float((x**4).mean()), float(np.abs(np.diff(x)).mean()),
        *(_correlate_with_itself(x, lag) for lag in (1, 12, 72)),
        float(at @ x / (at @ at)), _measure_tau(means),
        float(is_on.mean()), math.log(on), math.log(off), float((np.abs(values - middle) < width / 4).mean()),
        max((cycle.confidence for cycle in sure), default=0.0),
        sum(float(np.var(cycle.profile)) for cycle in sure), float(means.std()),
        float((values < IDLE_PER_CENT).mean()),
    ]  # fmt: skip
    return np.asarray(np.clip(np.array(found), -_MOST, _MOST))


def _correlate_with_itself(x: Floats, lag: int) -> float:
    return float((x[lag:] * x[:-lag]).mean()) if len(x) > lag else 0.0


def _measure_runs(is_on: np.ndarray) -> tuple[float, float]:
    """Median lengths in samples of the runs above the middle and of those below; 1 where there is none."""
    edges = np.flatnonzero(np.diff(is_on)) + 1
    lengths = np.diff(np.concatenate(([0], edges, [len(is_on)])))
    begins_on = bool(is_on[0])
    on, off = lengths[(0 if begins_on else 1) :: 2], lengths[(1 if begins_on else 0) :: 2]
    return (float(np.median(on)) if len(on) else 1.0, float(np.median(off)) if len(off) else 1.0)


def _measure_tau(means: Floats) -> float:
    """Kendall's: 1 if each is greater than all before it, 0 without a trend."""
    pairs = np.sign(means[None, :] - means[:, None])[np.triu_indices(len(means), 1)]
    return float(pairs.mean())
