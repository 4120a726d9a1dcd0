"""Forecasts: experts that the past weighs, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from weft.contracts.history import Floats
from weft.insight.forecast.experts import Experts
from weft.insight.forecast.forecaster import LEAST_SAMPLES, Forecast, Forecaster
from weft.insight.forecast.markov import CONTEXTS, QUANTILES, STILL, Steps
from weft.insight.forecast.past import Past

STEP = 300.0


def run(values: Floats, horizon: int) -> tuple[Floats, Floats, Floats]:
    """Errors of the forecasts and of the last value, and how much the intervals held: shape (count,) each."""
    forecaster = Forecaster(len(values), STEP, horizon)
    missed, walked, held, rounds = np.zeros(len(values)), np.zeros(len(values)), np.zeros(len(values)), 0
    for at in range(values.shape[1] - horizon):
        forecaster.put(values[:, at])
        found = forecaster.forecast()
        if found is None:
            continue
        outcome = values[:, at + horizon]
        missed += np.abs(outcome - found.value)
        walked += np.abs(outcome - values[:, at])
        held += (outcome >= found.low) & (outcome <= found.high)
        rounds += 1
    return missed / rounds, walked / rounds, held / rounds


def noise(seed: int, count: int = 40, length: int = 600) -> Floats:
    return 30 + 8 * np.random.default_rng(seed).standard_normal((count, length))


def test_the_past_is_a_window_of_the_newest_samples() -> None:
    past = Past(1, 4)
    assert past.ago(0) is None
    for value in range(7):
        past.put(np.array([float(value)]))
    assert past.last(3).tolist() == [[4, 5, 6]]
    assert past.last(9).tolist() == [[3, 4, 5, 6]]
    assert (past.last(1)[0, 0], past.ago(4)) == (6, None)
    found = past.ago(3)
    assert found is not None
    assert found.tolist() == [3]


@pytest.mark.parametrize("seed", range(4))
def test_steps_from_a_situation_have_the_median_that_sorting_them_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    values, contexts = np.round(random.standard_normal((2, 400)) * 5), random.integers(0, CONTEXTS, (3, 2, 400))
    steps = Steps(values, list(contexts), 3)
    now = contexts[:, :, -1]
    for series, (row, edges) in enumerate(zip(values, steps.edges, strict=True)):
        quantile = np.searchsorted(edges, row, side="right") * CONTEXTS
        for kind, context in enumerate(contexts[:, series]):
            medians = [find_median(row, quantile[:-3] + context[:-3] == group) for group in range(QUANTILES * CONTEXTS)]
            assert steps.medians[kind, series].tolist() == medians
            assert steps.find(values[:, -1], list(now))[kind][series] == medians[quantile[-1] + now[kind, series]]


def find_median(row: Floats, chosen: NDArray[np.bool_]) -> float:
    """The median of what three samples later has changed after each that is chosen, and of the zeros."""
    own = (row[3:] - row[:-3])[chosen]
    return float(np.median([*own, *[0.0] * STILL])) if len(own) >= 3 else 0.0


def test_noise_is_forecast_by_its_middle_and_a_walk_by_its_last_value() -> None:
    random = np.random.default_rng(5)
    missed, walked, _ = run(noise(1), 12)
    assert missed.mean() < 0.78 * walked.mean()  # 1 / sqrt(2) is the best there is
    missed, walked, _ = run(np.cumsum(random.standard_normal((40, 600)), axis=1), 12)
    assert missed.mean() < 1.06 * walked.mean()


def test_a_day_that_repeats_is_learnt() -> None:
    random = np.random.default_rng(7)
    day = 40 + 30 * np.sin(np.arange(288 * 6) / 288 * 2 * np.pi)
    values = day + random.standard_normal((8, len(day)))
    missed, walked, _ = run(values, 36)
    assert missed.mean() < 0.4 * walked.mean()


@pytest.mark.parametrize("horizon", [1, 12])
@pytest.mark.parametrize("size", [1.0, 1e6])
def test_intervals_hold_four_outcomes_of_five_whatever_the_unit(horizon: int, size: float) -> None:
    _, _, held = run(size * noise(3), horizon)
    assert 0.76 < held.mean() < 0.84
    assert ((held > 0.68) & (held < 0.92)).mean() > 0.9


def test_a_constant_series_is_forecast_exactly_and_with_an_interval_of_no_width() -> None:
    forecaster = Forecaster(2, STEP, 3)
    for _ in range(40):
        forecaster.put(np.array([0.0, 7.0]))
    found = forecaster.forecast()
    assert found is not None
    assert found.value.tolist() == found.low.tolist() == found.high.tolist() == [0.0, 7.0]


def test_nothing_is_forecast_of_less_than_an_hour() -> None:
    forecaster = Forecaster(1, STEP, 1)
    for at in range(LEAST_SAMPLES):
        assert forecaster.forecast() is None
        forecaster.put(np.array([float(at)]))
    assert forecaster.forecast() is not None


def test_a_gap_teaches_nothing() -> None:
    whole, with_gap = Forecaster(1, STEP, 2), Forecaster(1, STEP, 2)
    series = noise(9, 1, 200)[0]
    for at, value in enumerate(series):
        whole.put(np.array([value]))
        with_gap.put(np.array([np.nan if 100 <= at < 110 else value]))
    one, other = whole.forecast(), with_gap.forecast()
    assert isinstance(one, Forecast)
    assert isinstance(other, Forecast)
    assert abs(one.value - other.value).item() < 4
    assert np.isfinite([other.value, other.low, other.high]).all()


def test_a_series_that_is_never_negative_has_no_negative_forecast() -> None:
    forecaster = Forecaster(1, STEP, 1)
    random = np.random.default_rng(2)
    for value in np.abs(random.standard_normal(300)):
        forecaster.put(np.array([value]))
        found = forecaster.forecast()
        assert found is None or found.low.item() >= 0


def test_series_are_forecast_each_by_itself() -> None:
    both, alone = Experts(2, STEP, 4), Experts(1, STEP, 4)
    for one, other in noise(11, 2, 400).T:
        both.put(np.array([one, other]))
        alone.put(np.array([other]))
    assert both.forecast()[1] == pytest.approx(alone.forecast()[0])
