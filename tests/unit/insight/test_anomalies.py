"""Anomalies: what is unusual against a series' own past, told once."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.insight.nab import read_files, score
from benchmarks.insight.uneventful import draw_kinds, measure_rates

from weft.contracts.history import Floats
from weft.insight.anomalies import LEARNING_SAMPLES, SENSITIVE, SILENT_SAMPLES, THRESHOLD, Detector, Finding, Novelty

DATA = Path(os.environ.get("WEFT_DATA", Path(__file__).parents[4] / "shared" / "data"))


def judge(values: list[float] | Floats) -> list[Finding]:
    detector = Detector()
    return [detector.put(float(value)) for value in values]


def steady(seed: int, length: int = 2000) -> list[float]:
    return [float(value) for value in 30 + np.random.default_rng(seed).standard_normal(length)]


def test_series_in_which_nothing_happens_have_at_most_three_alarms_in_ten_weeks() -> None:
    rates = measure_rates(THRESHOLD, draws=2, weeks=5, seed=1)
    assert set(rates) == {"walk", "white noise", "AR(1) 0.95", "daily sine", "flat, tiny noise", "steps"}
    assert max(rates.values()) <= 0.3, rates


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
    assert len(alarms) == 1 and 1500 <= alarms[0] < 1506


def test_one_event_is_one_alarm_and_the_next_one_is_another() -> None:
    values = steady(3)
    values[1500], values[1500 + SILENT_SAMPLES // 2], values[1500 + 2 * SILENT_SAMPLES] = 60.0, 80.0, 120.0
    found = judge(values)
    assert [at for at, one in enumerate(found) if one.is_alarm] == [1500, 1500 + 2 * SILENT_SAMPLES]
    assert found[1500 + SILENT_SAMPLES // 2].score < THRESHOLD


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


@pytest.mark.parametrize("gap", [1, 40, 100])
def test_a_gap_is_not_unusual(gap: int) -> None:
    values, _ = draw_kinds(np.random.default_rng(6), 1)["daily sine"]
    values[1200 : 1200 + gap] = math.nan
    found = judge(values)
    assert {one.score for one in found[1200 : 1200 + gap]} == {0.0}
    assert not any(one.is_alarm for one in found) and all(math.isfinite(one.score) for one in found)


def test_numbers_of_any_size_leave_the_next_ones_judged() -> None:
    values = steady(7)
    values[1000], values[1100] = 1e9, -math.inf
    found = judge(values)
    assert found[1000].is_alarm and found[1100].is_alarm and all(math.isfinite(one.score) for one in found)
    assert len({one.score for one in found[1500:]}) > 100


def test_a_series_takes_at_most_200_kilobytes_however_long_it_is() -> None:
    novelty = Novelty()
    novelty.learn(np.random.default_rng(7).standard_normal(20_000))
    for value in steady(7, 4_100):
        novelty.put(value)
    held = [novelty._newest_first, *novelty._sums.values(), *(one._sorted for one in novelty._distances.values())]
    assert sum(map(sys.getsizeof, held)) <= 200_000


@pytest.mark.skipif(not (DATA / "nab").is_dir(), reason="without the data")
def test_what_people_found_unusual_is_found() -> None:
    names = {
        "realAWSCloudwatch/ec2_cpu_utilization_5f5533.csv",
        "realTraffic/speed_6005.csv",
        "realTraffic/speed_t4013.csv",
    }
    files = {name: file for name, file in read_files(DATA).items() if name in names}
    scores = {}
    for name, (_, values, _) in files.items():
        novelty = Novelty()
        scores[name] = [novelty.put(value) for value in values]
    assert len(files) == 3 and score(files, scores, SENSITIVE) >= 80
