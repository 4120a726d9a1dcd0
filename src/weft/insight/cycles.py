"""Cycles in a series, each with a confidence: what comes again every so often, and when it peaks.

A candidate is a peak of the periodogram above the series' own red background (Vaughan 2005), at a hill of the autocorrelation
(Vlachos, Yu and Castelli 2005), whose every cycle is predicted by the mean of the others. The confidence is a logistic of these
measures, learnt on drawn series with and without cycles: a random walk has peaks, too, and they must not count.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from weft.contracts.history import Floats

# Of 1, and of what _judge measures; a logistic regression on drawn weeks (benchmarks/insight/drawn.py, another seed).
WEIGHTS = (-5.433, 0.855, 2.731, -1.667, 0.523, 0.119, -0.343, 2.004)
REPORT = 0.7  # least confidence with which a cycle is shown
ACT = 0.9  # and with which anything is done about it
LEAST_CYCLES = 3.5  # of fewer, a random walk has some, too
LEAST_SAMPLES = 48
MOST_CANDIDATES = 12
_LEAST_RATIO = 1.5
_BACKGROUND_WIDTH = 0.45  # of the logarithm of a frequency, to both sides
_BACKGROUND_BINS = 7
_LEAST_POWER = 1e-4  # of the mean: a series without noise has nothing between its harmonics
_MEDIAN_TO_MEAN = 0.37  # of the logarithm of an exponential variable, about
_SAME_PERIOD = 0.08
_PEAK_SHARE = 1 / 6  # of a period: the mean fold is smoothed over it


class Cycle(msgspec.Struct, frozen=True):
    """``period`` in samples. ``profile``: the mean cycle, by phase, around 0; its phase 0 is the series' first sample."""

    period: float
    confidence: float
    profile: tuple[float, ...]


def find_cycles(values: Floats) -> list[Cycle]:
    """All that have a confidence of REPORT at least, the surest first; ``values`` evenly spaced, NaN in gaps."""
    return [cycle for cycle in weigh_cycles(values) if cycle.confidence >= REPORT]


def weigh_cycles(values: Floats) -> list[Cycle]:
    """Every candidate with its confidence, the surest first."""
    x = _prepare(values)
    if x is None:
        return []
    acf = _autocorrelate(x)
    found: list[Cycle] = []
    for k, ratio in _find_candidates(x):
        period = _find_period(acf, len(x), k)
        if period is None or any(_is_multiple(period, cycle.period) for cycle in found):
            continue
        cycle = _judge(x, acf, period, ratio)
        if cycle is not None:
            found.append(cycle)
    return sorted(found, key=lambda cycle: -cycle.confidence)


def _prepare(values: Floats) -> Floats | None:
    """Gaps filled, clipped, without trend, with a variance of 1; None: too short, mostly gaps, or constant."""
    known = np.flatnonzero(~np.isnan(values))
    if len(values) < LEAST_SAMPLES or len(known) < len(values) / 2:
        return None
    at = np.arange(len(values), dtype=np.float64)
    x = np.interp(at, known, values[known])
    x = np.clip(x, *np.quantile(x, (0.01, 0.99)))
    slope, start = np.polyfit(at, x, 1)
    x = x - (start + slope * at)
    spread = x.std()
    return x / spread if spread > 1e-9 * (1 + np.abs(values[known]).max()) else None


def _find_candidates(x: Floats) -> list[tuple[int, float]]:
    """Bins of the periodogram that stand out, the greatest first, each with the logarithm of how much."""
    raw = np.abs(np.fft.rfft(x * np.hanning(len(x))))[1:] ** 2
    power = np.log(raw + _LEAST_POWER * raw.mean())
    logs = np.log(np.arange(1, len(power) + 1))
    low = np.searchsorted(logs, logs - _BACKGROUND_WIDTH)
    high = np.searchsorted(logs, logs + _BACKGROUND_WIDTH, side="right")
    short = np.maximum(0, _BACKGROUND_BINS - (high - low))
    low = np.maximum(0, low - (short + 1) // 2)
    high = np.minimum(len(power), np.maximum(high, low + _BACKGROUND_BINS))
    background = np.array([np.median(power[a:b]) for a, b in zip(low, high, strict=True)])
    ratio = power - background - _MEDIAN_TO_MEAN
    order = np.argsort(-ratio)[: MOST_CANDIDATES * 2]
    found = [(int(k) + 1, float(ratio[k])) for k in order if ratio[k] > _LEAST_RATIO and k + 1 >= LEAST_CYCLES]
    return found[:MOST_CANDIDATES]


def _autocorrelate(x: Floats) -> Floats:
    """Unbiased, up to half the length and a little more."""
    n = len(x)
    spectrum = np.fft.rfft(x, 2 * n)
    raw = np.fft.irfft(spectrum * np.conj(spectrum))[: (2 * n) // 3]
    return np.asarray(raw / (n - np.arange(len(raw))) / max(raw[0] / n, 1e-12))


def _find_period(acf: Floats, n: int, k: int) -> float | None:
    """Period by the hill of the autocorrelation that a bin of the periodogram points at; None: there is none."""
    low, high = n / (k + 1), n / (k - 1) if k > 1 else n
    period = _find_hill(acf, low, high)
    if period is None:
        return None
    for times in (2, 3, 4):
        further = _find_hill(acf, times * period * 0.88, times * period * 1.12)
        if further is None:
            break
        period = further / times
    return period


def _find_hill(acf: Floats, low: float, high: float) -> float | None:
    first, last = max(2, math.floor(low)), math.ceil(high)
    if last + 1 >= len(acf) or last - first < 1:
        return None
    inner = acf[first : last + 1]
    tops = np.flatnonzero((inner >= acf[first - 1 : last]) & (inner >= acf[first + 1 : last + 2]) & (inner > 0))
    if not len(tops):
        return None
    at = first + int(tops[np.argmax(inner[tops])])
    bend = acf[at - 1] - 2 * acf[at] + acf[at + 1]
    return at + (0.5 * (acf[at - 1] - acf[at + 1]) / bend if bend < 0 else 0.0)


def _is_multiple(period: float, known: float) -> bool:
    times = max(1, round(period / known))
    return abs(period / known / times - 1) < _SAME_PERIOD


def _judge(x: Floats, acf: Floats, period: float, ratio: float) -> Cycle | None:
    cycles = int(len(x) / period)
    if len(x) / period < LEAST_CYCLES:
        return None
    table = _fold(x, period, cycles)
    others = (table.sum(axis=0) - table) / (cycles - 1)
    alike = np.array([_correlate(one, mean) for one, mean in zip(table, others, strict=True)])
    r = float(alike.mean())
    t = r / (float(alike.std(ddof=1)) / math.sqrt(cycles) + 0.05)
    left = float(((table - others) ** 2).sum() / max((table**2).sum(), 1e-12))
    hill = float(np.interp(period, np.arange(len(acf)), acf))
    valley = float(np.interp(period / 2, np.arange(len(acf)), acf))
    measures = (1.0, ratio, hill, r, min(t, 30.0), max(1 - left, -1.0), math.log(cycles), hill - valley)
    size = sum(weight * measure for weight, measure in zip(WEIGHTS, measures, strict=True))
    return Cycle(period, 1 / (1 + math.exp(-size)), tuple(table.mean(axis=0).tolist()))


def _fold(x: Floats, period: float, cycles: int) -> Floats:
    """A row for each cycle, a column for each phase; what is slower than the cycle is taken out by a mean over one period."""
    width = max(2, round(period))
    padded = np.concatenate((np.full(width, x[:width].mean()), x, np.full(width, x[-width:].mean())))
    sums = np.concatenate(([0.0], np.cumsum(padded)))
    middle = np.arange(len(x)) + width
    slow = (sums[middle + (width + 1) // 2] - sums[middle - width // 2]) / ((width + 1) // 2 + width // 2)
    at = (np.arange(cycles)[:, None] + np.arange(width)[None, :] / width) * period
    return np.interp(at, np.arange(len(x)), x - slow)


def _correlate(one: Floats, other: Floats) -> float:
    a, b = one - one.mean(), other - other.mean()
    size = math.sqrt(float((a**2).sum()) * float((b**2).sum()))
    return float((a * b).sum()) / size if size > 1e-12 else 0.0


class Extreme(msgspec.Struct, frozen=True):
    """A peak or a trough of a cycle: its place, and where it begins and ends at half its height; in samples from phase 0."""

    at: float
    begin: float
    end: float


def find_extremes(cycle: Cycle) -> tuple[list[Extreme], list[Extreme]]:
    """Peaks and troughs of the mean cycle, the greatest of each first; ``begin`` may lie before 0 and ``end`` after the period."""
    profile = np.array(cycle.profile)
    width = max(1, round(len(profile) * _PEAK_SHARE) | 1)
    kernel = np.ones(width) / width
    smooth = np.convolve(np.concatenate((profile[-width:], profile, profile[:width])), kernel, "same")[width:-width]
    scale = cycle.period / len(profile)
    return _find_tops(smooth, scale), _find_tops(-smooth, scale)


def _find_tops(smooth: Floats, scale: float) -> list[Extreme]:
    n = len(smooth)
    least = smooth.min()
    height = smooth.max() - least
    if height <= 0:
        return []
    tops: list[Extreme] = []
    for at in np.argsort(-smooth, kind="stable"):
        if smooth[at] - least < 0.6 * height or len(tops) == 4:
            break
        half = least + (smooth[at] - least) / 2
        begin, end = int(at), int(at)
        while smooth[(begin - 1) % n] >= half and at - begin < n - 1:
            begin -= 1
        while smooth[(end + 1) % n] >= half and end - at < n - 1:
            end += 1
        place = float(at) * scale
        if not any(_lies_in(place, top, n * scale) for top in tops):
            tops.append(Extreme(place, begin * scale, end * scale))
    return tops


def _lies_in(place: float, top: Extreme, period: float) -> bool:
    return any(top.begin <= place + turn * period <= top.end for turn in (-1, 0, 1))
