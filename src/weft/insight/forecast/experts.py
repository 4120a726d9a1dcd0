"""Many simple forecasts of each series, weighted by how they did: the past decides which of them a series follows.

The mean of experts with exponential weights (Cesa-Bianchi and Lugosi, Prediction, Learning, and Games, 2006, chapter 2), the loss
being the absolute error. Two memories weigh them, one that forgets slowly and one that forgets within hours, and the mean of both
counts: some series do what they did for weeks, others what the job does that runs now. One set of experts serves each series and
horizon; nothing is trained.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.contracts.history import Floats
from weft.insight.forecast.markov import Indexes, Steps
from weft.insight.forecast.past import Past

FORGET = 0.002  # of the losses at each sample, slowly; less far ahead, where errors overlap and each says less
FORGET_FAST = 0.03
SHARPNESS = 40.0
SMOOTHING = (0.6, 0.3, 0.1)
MEDIANS = (3, 6, 12, 24, 72)
DAY_SECONDS = 86400.0
REBUILD_SECONDS = 6 * 3600.0
_DAYS, _STEPS = "the same time on other days", "what followed similar hours"
_KINDS = (  # of each expert, in the order of their forecasts
    "the last value",
    *["a smoothed mean"] * len(SMOOTHING),
    *["the median of minutes"] * 2,
    "the median of an hour",
    *["the median of hours"] * 3,
    *["the last value and a median"] * 2,
    *[_DAYS] * 6,
    *[_STEPS] * 8,
)
_NEAR = 0.3  # of a standard deviation: about the same


class Experts:
    """Forecasts of ``count`` series, ``horizon`` samples ahead, a sample every ``step_seconds``."""

    def __init__(self, count: int, step_seconds: float, horizon: int) -> None:
        self._count, self._horizon = count, horizon
        self._day = max(1, round(DAY_SECONDS / step_seconds))
        self._hour = max(2, round(3600 / step_seconds))
        self._rebuild = max(1, round(REBUILD_SECONDS / step_seconds))
        self._past = Past(count, max(7 * self._day + horizon + 3, 16))
        self._smooth = np.zeros((len(SMOOTHING), count))
        self._seen = 0
        self._contexts = _Contexts(count, self._hour, self._day, self._past.length)
        self._steps: list[Steps] = []  # by memory
        self._open: deque[Floats] = deque(
            maxlen=horizon
        )  # forecasts whose time hasn't come, shape (experts, count) each
        self._memories = (_Memory(count, FORGET / math.sqrt(horizon)), _Memory(count, FORGET_FAST / horizon))

    def put(self, values: Floats) -> None:
        """The next sample of each series, shape (count,); NaN: none was measured, and the last one stands for it."""
        if len(self._open) == self._horizon:
            self._judge(self._open[0], np.nan_to_num(values), ~np.isnan(values))
        self._remember(values)
        if self._seen >= self._day + self._horizon and (self._seen - self._day - self._horizon) % self._rebuild == 0:
            self._learn_steps()
        self._open.append(self._ask_all())

    def prime(self, values: Floats) -> None:
        """A past that no expert is judged by, before the first sample: shape (count, n)."""
        for at in range(values.shape[1]):
            self._remember(values[:, at])
        if self._seen >= self._day + self._horizon:
            self._learn_steps()

    def _remember(self, values: Floats) -> None:
        before = self._past.ago(0)
        filled = np.where(np.isnan(values), 0.0 if before is None else before, values)
        self._past.put(filled)
        for smooth, share in zip(self._smooth, SMOOTHING, strict=True):
            smooth += (1.0 if self._seen == 0 else share) * (filled - smooth)
        self._contexts.put(self._past)
        self._seen += 1

    def forecast(self) -> Floats:
        """Forecast of each series, ``horizon`` samples after the newest, shape (count,)."""
        asked = self._open[-1]
        weights = self._weigh()
        if weights is None:
            return np.asarray(asked[self._usual])
        last = asked[0]  # around which the mean is taken, so that a constant stays exact
        return np.asarray(last + (weights * (asked - last)).sum(axis=0))

    def name_leaders(self) -> list[str]:
        """Name of the kind of experts that has most weight now, for each series."""
        weights = self._weigh()
        if weights is None:
            return [_KINDS[self._usual]] * self._count
        kinds = list(dict.fromkeys(_KINDS))
        sums = np.array([weights[[of == kind for of in _KINDS]].sum(axis=0) for kind in kinds])
        return [kinds[int(best)] for best in sums.argmax(axis=0)]

    def _weigh(self) -> Floats | None:
        """Shape (experts, count), together 1 for each series; None before anything was judged."""
        slow, fast = (memory.weigh() for memory in self._memories)
        return None if slow is None or fast is None else (slow + fast) / 2

    def _judge(self, asked: Floats, values: Floats, measured: np.ndarray) -> None:
        for memory in self._memories:
            memory.judge(np.abs(asked - values), measured)

    _usual = 1 + len(SMOOTHING) + MEDIANS.index(12)  # before anything was judged

    def _ask_all(self) -> Floats:
        past, day, ahead = self._past, self._day, self._horizon
        last = past.last(1)[:, 0].copy()
        medians = [_find_median(past.last(samples).T) for samples in (*MEDIANS, day)]
        asked = [last, *self._smooth, *medians]
        hour_median, day_median = medians[MEDIANS.index(12)], medians[-1]
        asked += [0.7 * last + 0.3 * day_median, 0.5 * last + 0.5 * hour_median]
        asked += self._ask_days(last, day, ahead)
        asked += self._ask_steps(last)
        return np.array(asked)

    def _ask_days(self, last: Floats, day: int, ahead: int) -> list[Floats]:
        """Forecasts by the time of the day and the week; without a day to look back on, the last value."""
        back = -(-ahead // day)  # days until the same time lies in the past
        then = [value for days in range(back, back + 7) if (value := self._past.ago(days * day - ahead)) is not None]
        now = [value for days in range(1, 8) if (value := self._past.ago(days * day)) is not None]
        if not then:
            return [last] * 6
        usual_then = _find_median(np.array(then))
        usual_now = _find_median(np.array(now)) if now else last
        around = [v for k in range(-2, 3) if (v := self._past.ago(back * day - ahead - k)) is not None]
        week = self._past.ago(7 * back * day - ahead)
        return [
            _find_median(np.array(around)),
            usual_then,
            week if week is not None else last,
            last + usual_then - usual_now,
            self._smooth[1] + usual_then - usual_now,
            0.7 * last + 0.3 * usual_then,
        ]

    def _ask_steps(self, last: Floats) -> list[Floats]:
        if not self._steps:
            return [last] * (2 * _Contexts.MANY)
        return [last + step for steps in self._steps for step in steps.find(last, self._contexts.now)]

    def _learn_steps(self) -> None:
        week, everything = self._past.last(7 * self._day), self._past.last(self._past.length)
        of_week = self._learn(week)
        self._steps = [of_week, of_week if everything.shape == week.shape else self._learn(everything)]

    def _learn(self, values: Floats) -> Steps:
        return Steps(values, self._contexts.last(values.shape[1]), self._horizon)


class _Memory:
    """Loss of each expert so far, the older the less it counts."""

    def __init__(self, count: int, forget: float) -> None:
        self._keep = 1 - forget
        self._loss: Floats | None = None
        self._rounds = np.zeros(count)

    def judge(self, errors: Floats, measured: np.ndarray) -> None:
        """``errors``: shape (experts, count), of series that were measured."""
        if self._loss is None:
            self._loss = np.zeros_like(errors)
        keep = np.where(measured, self._keep, 1.0)
        self._loss = self._loss * keep + np.where(measured, errors, 0.0)
        self._rounds = self._rounds * keep + measured

    def weigh(self) -> Floats | None:
        """Shape (experts, count), together 1 for each series; None before anything was judged."""
        if self._loss is None:
            return None
        quality = self._loss / np.maximum(self._rounds, 1e-9)
        best = quality.min(axis=0)
        worse = np.where(best > 0, quality / np.where(best > 0, best, 1.0) - 1.0, np.where(quality > 0, np.inf, 0.0))
        weights = np.exp(-SHARPNESS * worse)
        return np.asarray(weights / weights.sum(axis=0))


class _Contexts:
    """Contexts that distinguish situations of the same value: nothing; the value against the mean of the hour; this mean against
    that of six hours; the quarter of the day."""

    MANY = 4

    def __init__(self, count: int, hour: int, day: int, length: int) -> None:
        self._hour, self._day = hour, day
        self._kept = [
            Past(count, length, np.int8) for _ in range(self.MANY)
        ]  # as numbers they took as much as the values
        self._seen = 0
        self.now: list[Indexes] = [np.zeros(count, np.int64)] * self.MANY

    def put(self, past: Past) -> None:
        last, hour, six = past.last(1)[:, 0], past.last(self._hour), past.last(6 * self._hour)
        spread = _NEAR * past.last(self._day).std(axis=1)
        mean = hour.mean(axis=1)
        self.now = [
            np.zeros(len(last), np.int64),
            _compare(last - mean, spread),
            _compare(mean - six.mean(axis=1), spread),
            np.full(len(last), 4 * (self._seen % self._day) // self._day, np.int64),
        ]
        self._seen += 1
        for kept, context in zip(self._kept, self.now, strict=True):
            kept.put(context)

    def last(self, samples: int) -> list[NDArray[Any]]:
        return [kept.last(samples) for kept in self._kept]


def _find_median(values: Floats) -> Floats:
    """Median along the first axis, of what has no NaN: ``np.median`` takes longer to look for them than to find it."""
    lower, upper = (len(values) - 1) // 2, len(values) // 2
    ordered = np.partition(values, (lower, upper), axis=0)
    return np.asarray((ordered[lower] + ordered[upper]) / 2)


def _compare(difference: Floats, spread: Floats) -> Indexes:
    """0: below, 1: about the same, 2: above."""
    return np.asarray((difference > spread).astype(np.int64) - (difference < -spread) + 1)
