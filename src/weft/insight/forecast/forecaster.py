"""Forecasts of many series, a fixed time ahead, each with an interval that holds the outcome four times in five."""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np

from weft.contracts.history import Floats
from weft.insight.forecast.experts import Experts
from weft.insight.forecast.interval import Intervals

TAIL = 0.10
LATE_TAIL = 0.08  # of forecasts far ahead, whose errors are known late
LATE_SAMPLES = 12
LEAST_SAMPLES = 12  # before anything is forecast


class Forecast(msgspec.Struct, frozen=True):
    """Forecast of each series, shape (count,): the value, and the ends of its 80 % interval."""

    value: Floats
    low: Floats
    high: Floats


class Forecaster:
    """Forecaster of ``count`` series, a sample every ``step_seconds``, ``horizon`` samples ahead."""

    def __init__(self, count: int, step_seconds: float, horizon: int) -> None:
        self._experts = Experts(count, step_seconds, horizon)
        tail = TAIL + (LATE_TAIL - TAIL) * min(1.0, (horizon - 1) / (LATE_SAMPLES - 1))
        self._intervals = Intervals(count, tail)
        self._open: deque[Floats] = deque(maxlen=horizon)
        self._horizon = horizon
        self._seen = 0
        self._last: Floats | None = None
        self._walked = np.zeros(count)
        self._least = np.full(count, np.inf)

    def put(self, values: Floats) -> None:
        """The next sample of each series, shape (count,); NaN where none was measured."""
        if len(self._open) == self._horizon:
            self._intervals.learn(self._open[0], values)
        self._experts.put(values)
        self._least = np.fmin(self._least, values)
        if self._seen < LEAST_SAMPLES:
            if self._last is not None:
                self._walked += np.nan_to_num(np.abs(values - self._last))
            self._last = values
        self._seen += 1
        if self._seen < LEAST_SAMPLES:
            return
        value = self._experts.forecast()
        if self._seen == LEAST_SAMPLES and not self._open:
            self._intervals.begin(self._walked / (LEAST_SAMPLES - 1))
        self._open.append(value)

    def prime(self, values: Floats) -> None:
        """A past before the first sample, LEAST_SAMPLES at least: it is remembered, and nothing is judged by it, which is a tenth
        of the work. Shape (count, n)."""
        self._experts.prime(values)
        self._seen = values.shape[1]
        known = values[:, -LEAST_SAMPLES:]
        self._least = np.nanmin(np.where(np.isnan(values), np.inf, values), axis=1)
        self._intervals.begin(np.nan_to_num(np.abs(np.diff(known, axis=1))).mean(axis=1))

    def name_leaders(self) -> list[str]:
        """Name of what each forecast follows most."""
        return self._experts.name_leaders()

    def forecast(self) -> Forecast | None:
        """``horizon`` samples after the newest; None before there are LEAST_SAMPLES."""
        if not self._open:
            return None
        value = self._open[-1]
        low, high = self._intervals.around(value)
        return Forecast(value, np.where(self._least >= 0, np.maximum(low, 0.0), low), high)
