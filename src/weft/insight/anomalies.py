"""What is unusual in a series, sample by sample: each of six channels against its own past, by the tail of its distribution.

A channel's excesses over its 98 % quantile are taken as exponential (peaks over a threshold: Balkema and de Haan 1974, Pickands
1975), so that a score is -log10 of the probability: 4 is once in ten thousand samples.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

import msgspec
import numpy as np

from weft.contracts.history import Floats

THRESHOLD = 4.0
SILENT_SAMPLES = 288  # after an alarm
QUANTILE = 0.98
HOUR = 12  # samples of the level and the spread
LEVEL_DISCOUNT = 1.1  # a level says less than a step: it lasts, and is seen in many samples
LEAST_SAMPLES = 24  # of a channel's past, before it knows what is usual
LEARNING_SAMPLES = 288  # before anything is judged: a day
LEAST_DIFFERENT = 5  # values: a series of fewer has no steps to judge
MOST_KEPT = 4000  # of a channel's past


class Finding(msgspec.Struct, frozen=True):
    """``score``: -log10 of how probable the sample was. ``channel``: "jump", "level", "hour" (the mean of the last) or "spread".
    ``usual``: the range in which 98 % of the past values lay; of "hour", of the past hours' means."""

    score: float
    channel: str = ""
    usual: tuple[float, float] = (math.nan, math.nan)

    @property
    def is_alarm(self) -> bool:
        return self.score >= THRESHOLD


class Detector:
    """Of one series."""

    def __init__(self) -> None:
        self._jump, self._spread = _Channel(), _Channel()
        self._levels = {"high": _Channel(), "low": _Channel(), "hour high": _Channel(), "hour low": _Channel()}
        self._hour: deque[float] = deque(maxlen=HOUR)
        self._different: set[float] = set()
        self._seen = 0
        self._silent = 0
        self._silent_above = 0.0

    def learn(self, values: Floats, silent_samples: int = 0, silent_above: float = 0.0) -> None:
        """A past before the first sample, of which nothing is judged; then as after an alarm of ``silent_above`` with so many
        silent samples left. In one step for each channel, a hundredth of the work."""
        x, known = values, ~np.isnan(values)
        self._seen = int(known.sum())
        self._different = set(x[known][:MOST_KEPT].tolist()) if self._seen else set()
        while len(self._different) > LEAST_DIFFERENT:
            self._different.pop()
        steps = np.abs(np.diff(x))
        self._jump.learn(steps[~np.isnan(steps)])
        self._levels["high"].learn(x[known])
        self._levels["low"].learn(-x[known])
        if len(x) >= HOUR:
            windows = np.lib.stride_tricks.sliding_window_view(x, HOUR)
            windows = windows[~np.isnan(windows).any(axis=1)]
            means = windows.mean(axis=1)
            self._levels["hour high"].learn(means)
            self._levels["hour low"].learn(-means)
            self._spread.learn(windows.std(axis=1))
        gaps = np.flatnonzero(~known)
        self._hour.extend(x[max(gaps[-1] + 1 if len(gaps) else 0, len(x) - HOUR) :].tolist())
        self._silent, self._silent_above = silent_samples, silent_above

    def put(self, value: float) -> Finding:
        """Judge the next sample. NaN is no sample: it is never unusual."""
        if math.isnan(value):
            self._hour.clear()
            return Finding(0.0)
        before = self._hour[-1] if self._hour else None
        self._hour.append(value)
        if len(self._different) < LEAST_DIFFERENT:
            self._different.add(value)
        self._seen += 1
        usual = self._levels["high"].usual()
        scores = {"jump": self._jump.put(abs(value - before)) if before is not None else 0.0}
        if len(self._different) < LEAST_DIFFERENT:
            scores["jump"] = 0.0
        scores["level"] = max(self._levels["high"].put(value), self._levels["low"].put(-value)) - LEVEL_DISCOUNT
        if len(self._hour) == HOUR:
            mean = sum(self._hour) / HOUR
            hour = self._levels["hour high"].usual()
            above, below = self._levels["hour high"].put(mean), self._levels["hour low"].put(-mean)
            scores["hour"] = max(above, below) - LEVEL_DISCOUNT
            spread = math.sqrt(sum((one - mean) ** 2 for one in self._hour) / HOUR)
            scores["spread"] = self._spread.put(spread) - LEVEL_DISCOUNT
        score = max(scores.values())
        if self._seen <= LEARNING_SAMPLES or score <= 0.0:
            return Finding(0.0)
        telling = min(score, THRESHOLD)  # of several that are unusual, the one that says most
        channel = next(name for name, own in scores.items() if own >= telling)
        return self._quieten(Finding(score, channel, hour if channel == "hour" else usual))

    def _quieten(self, found: Finding) -> Finding:
        """One alarm for one event: what follows it is silent unless it is worse."""
        if self._silent > 0:
            self._silent -= 1
            if found.score <= self._silent_above:
                return msgspec.structs.replace(found, score=min(found.score, THRESHOLD - 0.5) / 2)
        if found.is_alarm:
            self._silent, self._silent_above = SILENT_SAMPLES, found.score
        return found


class _Channel:
    """The past of one number, sorted; of a long one every second value goes now and then."""

    def __init__(self) -> None:
        self._sorted: list[float] = []

    def learn(self, values: Floats) -> None:
        """The newest MOST_KEPT of them are its past."""
        self._sorted = np.sort(values[-MOST_KEPT:]).tolist()

    def usual(self) -> tuple[float, float]:
        if len(self._sorted) < LEAST_SAMPLES:
            return (math.nan, math.nan)
        rest = (1 - QUANTILE) / 2
        last = len(self._sorted) - 1
        return self._sorted[int(rest * last)], self._sorted[math.ceil((1 - rest) * last)]

    def put(self, value: float) -> float:
        """-log10 of how probable a value as great as this was; then it is part of the past."""
        past = self._sorted
        score = self._judge(past, value) if len(past) >= LEAST_SAMPLES else 0.0
        insort(past, value)
        if len(past) > MOST_KEPT:
            del past[::2]
        return score

    @staticmethod
    def _judge(past: list[float], value: float) -> float:
        at = math.ceil(QUANTILE * (len(past) - 1))
        bound = past[at]
        if value <= bound:
            return -math.log10(1 - bisect_left(past, value) / (len(past) + 1))
        tail = past[at:]
        excess = max(sum(tail) / len(tail) - bound, 0.001 * abs(bound), 1e-12)
        return -math.log10(1 - QUANTILE) + (value - bound) / (math.log(10) * excess)
