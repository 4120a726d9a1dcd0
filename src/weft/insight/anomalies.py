"""Anomalies of a series, sample by sample: the last 8 and the last 24 samples are compared with all pieces of the past.

How far a piece is from the nearest earlier one of its length is the discord of Keogh, Lin and Fu (2005), here of the newest piece
only, as in KNN-CAD (Burnaev and Ishimtsev 2016). How rare such a distance is, is read from the tail of the past distances: over
their 90 % quantile they are taken as exponential (peaks over a threshold: Balkema and de Haan 1974, Pickands 1975). The score
counts instead of giving a probability: 2 means that as much was to be expected of twenty of the earlier samples, in a day or in a
month. So a series that was looked at for long has fewer alarms.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, insort

import msgspec
import numpy as np

from weft.contracts.history import Floats

THRESHOLD = 2.6  # what people are told
SENSITIVE = 1.4  # where NAB pays most: about one false alarm a week
SILENT_SAMPLES = 60  # after an alarm
LEARNING_SAMPLES = 288  # before anything is judged: a day
PIECES = (8, 24)  # samples; each a multiple of the one before
REACH = 2000  # lags at which earlier pieces begin: a week of five minutes
MOST_KEPT = 4000  # of the past distances of a length
QUANTILE = 0.9  # of distances, where their tail begins
LEAST_SAMPLES = 24  # distances, before a length knows what is usual
HOUR, STEP = 12, 3  # samples, for the words of an alarm
USUAL_SHARE = 0.98
_REFRESH_SAMPLES = 250  # sums are added up again, so that rounding errors don't add up
_ROUNDING = 1e-12  # of the median of the sums: less is nothing
_MOST = 1e18  # of a value: distances are kept as float32


class Finding(msgspec.Struct, frozen=True):
    """``score``: log10 of 2000 over the number of earlier samples that were as new. ``channel``, of an alarm: what stands out,
    "jump", "level", "hour" (the mean of the last) or "spread"; "pattern": only the order of the values. ``usual``: the range in
    which 98 % of the past values lay; of "hour", of the past hours' means."""

    score: float
    channel: str = ""
    usual: tuple[float, float] = (math.nan, math.nan)
    is_alarm: bool = False


class Detector:
    """Judges one series. ``threshold``: the score of an alarm."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self._novelty = Novelty()
        self._silent = 0

    def learn(self, values: Floats, silent_samples: int = 0) -> None:
        """Take in a past, of which nothing is judged; then as after an alarm with so many silent samples left. A tenth of the
        work of as many samples one by one."""
        self._novelty.learn(values)
        self._silent = silent_samples

    def put(self, value: float) -> Finding:
        """Judge the next sample. NaN is no sample: it is never unusual."""
        score = max(0.0, self._novelty.put(value))
        if math.isnan(value) or self._novelty.seen <= LEARNING_SAMPLES:
            return Finding(0.0)
        self._silent -= 1
        if score < self.threshold:
            return Finding(score)
        if self._silent > 0:
            return Finding(self.threshold / 2)  # one alarm for one event
        self._silent = SILENT_SAMPLES
        return Finding(score, *_explain(self._novelty.past), is_alarm=True)


class Novelty:
    """Tells how new the last pieces of a series are. ``pieces``: their lengths in samples."""

    def __init__(self, pieces: tuple[int, ...] = PIECES) -> None:
        self.seen = 0
        self._since_gap = 0
        self._pieces = pieces
        self._distances = {length: _Distances() for length in pieces}
        self._sums = {length: np.zeros(REACH) for length in pieces}  # of squared differences, at each lag - 1
        self._nothing = dict.fromkeys(pieces, 0.0)
        self._length = REACH + pieces[-1] + 1
        self._newest_first = np.zeros(2 * self._length)  # filled from its end to its beginning
        self._at = 2 * self._length

    @property
    def past(self) -> Floats:
        """The known samples, a week of them at most, the newest first."""
        return self._newest_first[self._at : self._at + min(self.seen, self._length)]

    def learn(self, values: Floats) -> None:
        """Do the same as ``put`` of each, with the newest few thousand of them."""
        known = ~np.isnan(values)
        samples = np.clip(values[known], -_MOST, _MOST)
        self.seen = len(samples)
        places = np.arange(len(values))
        since_gap = (places - np.maximum.accumulate(np.where(known, -1, places)))[known]
        self._since_gap = int(since_gap[-1]) if len(values) and known[-1] else 0
        recent = samples[-(REACH + MOST_KEPT) :]
        newest = samples[::-1][: self._length]
        self._at = 2 * self._length - len(newest)
        self._newest_first[self._at :] = newest
        self._add_up()
        for length, distances in _find_nearest(recent, self._pieces).items():
            usable = np.isfinite(distances) & (since_gap[len(samples) - len(recent) :] >= length)
            distances[distances**2 <= self._nothing[length]] = 0.0
            self._distances[length].learn(distances[usable])

    def put(self, value: float) -> float:
        """The score of the next sample."""
        if math.isnan(value):
            self._since_gap = 0
            for sums in self._sums.values():
                sums[:] = 0.0
            return 0.0
        if self._at == 0:
            self._newest_first[self._length :] = self._newest_first[: self._length]
            self._at = self._length
        self._at -= 1
        self._newest_first[self._at] = min(_MOST, max(-_MOST, value))
        self.seen += 1
        self._since_gap += 1
        if self.seen % _REFRESH_SAMPLES:
            newest = self._compare(0)
            for length in self._pieces:
                sums = self._sums[length]
                sums[: len(newest)] += newest
                if self._since_gap > length:
                    oldest = self._compare(length)
                    sums[: len(oldest)] -= oldest
        else:
            self._add_up()
        scores = [self._judge(length) for length in self._pieces]
        return sum(scores) / len(scores) + math.log10(REACH / self.seen)

    def _judge(self, length: int) -> float:
        """-log10 of the share of past distances that were as great. Of a piece with a gap in it, what came after the gap counts."""
        last = min(REACH, self.seen - length)
        if last < length:
            return 0.0
        nearest = float(self._sums[length][length - 1 : last].min())  # from lag ``length`` on: not itself
        distance = math.sqrt(nearest) if nearest > self._nothing[length] else 0.0
        return self._distances[length].put(distance, whole=self._since_gap >= length)

    def _compare(self, back: int) -> Floats:
        """Squared differences of the sample ``back`` ago to those 1, 2, … before it."""
        begin = self._at + back
        lags = max(0, min(REACH, self.seen - 1 - back))
        differences = self._newest_first[begin + 1 : begin + 1 + lags] - (self._newest_first[begin] if lags else 0.0)
        differences *= differences
        return differences

    def _add_up(self) -> None:
        for length, sums in self._sums.items():
            sums[:] = 0.0
            for back in range(min(length, self._since_gap)):
                squares = self._compare(back)
                sums[: len(squares)] += squares
            self._nothing[length] = _ROUNDING * float(np.median(sums))


class _Distances:
    """The past distances of one length, sorted; of many, every second goes now and then."""

    def __init__(self) -> None:
        self._sorted = array("f")

    def learn(self, distances: Floats) -> None:
        self._sorted = array("f", np.sort(distances[-MOST_KEPT:]).astype(np.float32).tobytes())

    def put(self, distance: float, whole: bool) -> float:
        """-log10 of the share of the past that was as great; then it is part of the past, if it is of a ``whole`` piece."""
        past = self._sorted
        number = len(past)
        distance = float(np.float32(distance))
        score = 0.0
        if number >= LEAST_SAMPLES:
            at = math.ceil(QUANTILE * (number - 1))
            bound = past[at]
            if distance > bound > 0.0:
                excess = max(sum(past[at:]) / (number - at) - bound, 0.001 * bound)
                score = (distance - bound) / (excess * math.log(10)) - math.log10(1 - QUANTILE)
            else:  # where nine of ten are 0 there is no tail to go by
                score = math.log10((number + 1) / (number - bisect_left(past, distance) + 1))
        if whole:
            insort(past, distance)
            if number >= MOST_KEPT:
                del past[::2]
        return score


def _find_nearest(samples: Floats, pieces: tuple[int, ...]) -> dict[int, Floats]:
    """The distance of the piece of each length that ends at each sample to the nearest before it; infinite where there is none."""
    number, block = len(samples), pieces[0]
    nearest = {length: np.full(number, math.inf) for length in pieces}
    padded = np.concatenate([np.full(REACH, math.inf), samples])
    earlier = np.lib.stride_tricks.sliding_window_view(padded, number)[
        ::-1
    ]  # in row ``lag``, the sample so long before each
    for lag in range(block, min(REACH, number - block) + 1, block):
        sums, width = earlier[lag : lag + block, lag:] - samples[lag:], 1
        sums *= sums
        for length in pieces:
            if number < lag + length:
                break
            sums, width = _widen(sums, width, length), length
            if lag >= length:
                found = nearest[length][lag + length - 1 :]
                np.minimum(found, sums.min(axis=0), out=found)
    return {length: np.sqrt(found) for length, found in nearest.items()}


def _widen(sums: Floats, width: int, length: int) -> Floats:
    """Sums of ``length`` consecutive columns out of those of ``width``."""
    times = length // width
    while times % 2 == 0:
        sums = sums[:, width:] + sums[:, :-width]
        width, times = 2 * width, times // 2
    columns = sums.shape[1] - (times - 1) * width
    total = sums[:, :columns]
    for at in range(1, times):
        total = total + sums[:, at * width : at * width + columns]
    return total


def _explain(newest_first: Floats) -> tuple[str, tuple[float, float]]:
    """The channel in which the newest sample is rarest, and the usual range."""
    values = newest_first[::-1]
    hours = np.lib.stride_tricks.sliding_window_view(values, HOUR)
    means = hours.mean(axis=1)
    steps = np.max([abs(values[STEP:] - values[STEP - back : -back]) for back in range(1, STEP + 1)], axis=0)
    rarest, channel = (1 - USUAL_SHARE) / 2, "pattern"
    for name, numbers in (
        ("jump", steps), ("level", values), ("level", -values), ("hour", means), ("hour", -means), ("spread", hours.std(axis=1)),
    ):  # fmt: skip
        share = float((numbers[:-1] >= numbers[-1]).mean())
        if share < rarest:
            rarest, channel = share, name
    rest = (1 - USUAL_SHARE) / 2
    low, high = np.quantile((means if channel == "hour" else values)[:-1], (rest, 1 - rest))
    return channel, (float(low), float(high))
