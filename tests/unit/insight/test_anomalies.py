"""Anomalies: what is unusual against a series' own past, told once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.insight.anomalies import LEARNING_SAMPLES, SILENT_SAMPLES, THRESHOLD, Detector, Finding


def judge(values: list[float]) -> list[Finding]:
    detector = Detector()
    return [detector.put(value) for value in values]


def steady(seed: int, length: int = 2000) -> list[float]:
    return [float(value) for value in 30 + np.random.default_rng(seed).standard_normal(length)]


def test_a_steady_series_has_no_alarm() -> None:
    alarms = [one for seed in range(10) for one in judge(steady(seed)) if one.is_alarm]
    assert len(alarms) <= 4  # in 20,000 samples


def test_a_spike_is_an_alarm_with_the_usual_range() -> None:
    values = steady(1)
    values[1500] = 60.0
    found = judge(values)[1500]
    assert found.is_alarm
    assert found.channel in ("jump", "level")
    assert 26 < found.usual[0] < 29
    assert 31 < found.usual[1] < 34


def test_a_new_level_is_told_once() -> None:
    values = steady(2)
    values[1500:] = [value + 6 for value in values[1500:]]
    alarms = [at for at, one in enumerate(judge(values)) if one.is_alarm]
    assert len(alarms) <= 2
    assert 1500 <= alarms[0] < 1512


def test_what_is_worse_than_the_alarm_before_it_is_told_although_that_was_just_now() -> None:
    values = steady(3)
    values[1500], values[1500 + SILENT_SAMPLES // 2] = 60.0, 900.0
    found = judge(values)
    assert found[1500].is_alarm
    assert found[1500 + SILENT_SAMPLES // 2].is_alarm


def test_an_unrest_of_the_same_mean_is_told() -> None:
    random = np.random.default_rng(4)
    values = steady(4)
    values[1500:1600] = [float(30 + 8 * step) for step in random.standard_normal(100)]
    assert any(one.is_alarm for one in judge(values)[1500:1512])


def test_nothing_is_unusual_on_the_first_day() -> None:
    values = steady(5)[:LEARNING_SAMPLES]
    values[-1] = 1e9
    assert not any(one.is_alarm for one in judge(values))


@pytest.mark.parametrize("value", [0.0, 3.5, 1e12])
def test_a_constant_series_is_never_unusual(value: float) -> None:
    assert max(one.score for one in judge([value] * 1000)) < THRESHOLD


def test_a_series_of_two_values_isn_t_judged_by_its_steps() -> None:
    assert not any(one.channel == "jump" for one in judge([float(at % 7 == 0) for at in range(1000)]))


def test_gaps_are_no_samples() -> None:
    values = steady(6)
    values[1200:1300] = [math.nan] * 100
    found = judge(values)
    assert {one.score for one in found[1200:1300]} == {0.0}
    assert all(math.isfinite(one.score) for one in found)


def test_a_long_past_is_held_within_bounds() -> None:
    detector = Detector()
    for value in steady(7, 12_000):
        detector.put(value)
    assert max(len(channel._sorted) for channel in detector._levels.values()) <= 4000
