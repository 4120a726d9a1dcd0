"""Predict a series in five minutes, an hour and a day. The last days are forecast sample by sample: how those forecasts did says
which experts count, and how wide the intervals are."""

from __future__ import annotations

import bisect
import math
import warnings
from typing import NamedTuple

import numpy as np

from weft.contracts.history import Floats
from weft.insight.forecast.forecaster import LEAST_SAMPLES, Forecaster
from weft.kinds.profile import Prediction


class Horizon(NamedTuple):
    """``ahead``, ``judged`` and ``least`` in steps of ``mean`` samples: how far, by how many of the newest the experts are judged,
    and how many there must be."""

    name: str
    mean: int
    ahead: int
    judged: int
    least: int
    words: str


HORIZONS = (
    Horizon("5m", 1, 1, 288, 12, "an hour"),
    Horizon("1h", 1, 12, 288, 36, "three hours"),
    Horizon("24h", 6, 48, 192, 96, "two days"),
)
HOUR = HORIZONS[1]
# Series are handled together with those up to a fifth longer, which lose their oldest samples.
_LENGTHS = sorted(
    {int(LEAST_SAMPLES * 1.2**k) for k in range(60)} | {one.least * one.mean for one in HORIZONS} | {2016}
)


class Predicted(NamedTuple):
    """Prediction of one series. ``error``: the mean absolute error of its forecasts an hour ahead, NaN where no forecast was
    judged."""

    prediction: dict[str, Prediction]
    error: float


def predict(values: Floats, step_seconds: float) -> list[Predicted]:
    """Predict each series; shape (count, n), evenly spaced, NaN where nothing was measured."""
    found: list[Predicted] = [Predicted({}, math.nan)] * len(values)
    groups: dict[int, list[int]] = {}
    for at, row in enumerate(values):
        known = np.flatnonzero(~np.isnan(row))
        if len(known) and (length := _round_down(len(row) - int(known[0]))) >= LEAST_SAMPLES:
            groups.setdefault(length, []).append(at)
    for length, members in groups.items():
        for at, one in zip(members, _predict_alike(values[members, -length:], step_seconds), strict=True):
            found[at] = one
    return found


def _round_down(length: int) -> int:
    """The longest of a few lengths that isn't longer; 0: it is shorter than all of them."""
    at = bisect.bisect_right(_LENGTHS, length)
    return _LENGTHS[at - 1] if at else 0


def _predict_alike(values: Floats, step_seconds: float) -> list[Predicted]:
    found: list[dict[str, Prediction]] = [{} for _ in values]
    errors = np.full(len(values), math.nan)
    for horizon in HORIZONS:
        series = average(values, horizon.mean)
        if series.shape[1] < horizon.least:
            continue
        forecaster, missed = _replay(series, horizon, step_seconds * horizon.mean)
        forecast = forecaster.forecast()
        if forecast is None:
            continue
        if horizon is HOUR:
            errors = missed
        seconds = step_seconds * horizon.mean * horizon.ahead
        leaders = forecaster.name_leaders()
        for at, own in enumerate(found):
            own[horizon.name] = Prediction(
                seconds=seconds,
                value=_short(forecast.value[at]),
                low=_short(forecast.low[at]),
                high=_short(forecast.high[at]),
                method=f"weighted experts, most of all {leaders[at]}",
            )
        del forecaster  # before the next is made: one has a megabyte for ten series
    return [Predicted(own, float(error)) for own, error in zip(found, errors, strict=True)]


def _replay(series: Floats, horizon: Horizon, step_seconds: float) -> tuple[Forecaster, Floats]:
    """A forecaster that has seen all of it, and the mean absolute error of each series."""
    count, length = series.shape
    forecaster = Forecaster(count, step_seconds, horizon.ahead)
    begin = length - horizon.judged
    if begin < LEAST_SAMPLES:
        begin = 0
    else:
        forecaster.prime(series[:, :begin])
    made: list[Floats | None] = []
    for at in range(begin, length):
        forecaster.put(series[:, at])
        forecast = forecaster.forecast()
        made.append(None if forecast is None else forecast.value)
    pairs = [
        np.abs(series[:, begin + at + horizon.ahead] - value)
        for at, value in enumerate(made[: -horizon.ahead])
        if value is not None
    ]
    return forecaster, _mean(np.array(pairs), 0) if pairs else np.full(count, math.nan)


def average(values: Floats, samples: int) -> Floats:
    """Means over so many samples each, the newest whole ones; NaN where all of them are unknown."""
    if samples == 1:
        return values
    count, length = values.shape
    whole = length // samples * samples
    return _mean(values[:, length - whole :].reshape(count, -1, samples), 2)


def _mean(values: Floats, axis: int) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but gaps
        return np.asarray(np.nanmean(values, axis=axis))


def _short(value: float) -> float:
    """Six digits are plenty, and short to store."""
    return float(f"{value:.6g}")
