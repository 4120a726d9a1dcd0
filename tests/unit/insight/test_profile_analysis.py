"""One look at workloads: forecasts, cycles in words and times, what is unusual, what goes together, why something is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np
import pytest

from weft.contracts.history import Floats
from weft.insight.anomalies import Detector
from weft.insight.profile.analysis import (
    STEP_SECONDS,
    Batch,
    Finding,
    Peers,
    Search,
    Searched,
    Subject,
    Table,
    analyse,
    find_anomalies,
)
from weft.insight.profile.patterns import Series, find_patterns, fold_median, name_cycle
from weft.insight.profile.prediction import average, predict
from weft.kinds.profile import Signature

DAY, WEEK = 288, 2016
START = 1_700_006_400.0  # a midnight, UTC
RANDOM = np.random.default_rng(39)


def draw_days(samples: int = WEEK, peak_hour: float = 2.0, noise: float = 0.02) -> Floats:
    """Cores of a VM that works around one hour of each day."""
    hour = np.arange(samples) * STEP_SECONDS / 3600 % 24
    distance = np.minimum(np.abs(hour - peak_hour), 24 - np.abs(hour - peak_hour))
    return 0.1 + 0.8 * np.exp(-((distance / 1.5) ** 2)) + noise * RANDOM.random(samples)


NEWS = RANDOM.standard_normal(WEEK)
ROWS = {  # looked at together, as the forecasts cost most of the time
    "days": draw_days() + 0.05 * NEWS,
    "related": draw_days() + 0.05 * NEWS + 0.01 * RANDOM.standard_normal(WEEK),
    "same hour": draw_days(noise=0.1),
    "constant": np.full(WEEK, 0.5),
    "zero": np.zeros(WEEK),
    "two values": np.where(RANDOM.random(WEEK) < 0.3, 1.0, 0.0),
    "walk": np.cumsum(RANDOM.standard_normal(WEEK)),
    "gaps": np.where(RANDOM.random(WEEK) < 0.6, np.nan, RANDOM.random(WEEK)),
    "stopped": np.append(np.full(400, 0.5), [np.nan] * 3),
    "none": np.full(1, np.nan),
    **{f"{n} samples": draw_days()[-n:] for n in (1, 12, 40, 300, 700)},
}
NO_CYCLES = ("constant", "zero", "two values", "walk", "gaps", "1 samples", "12 samples", "40 samples")


def look(rows: Mapping[str, Floats]) -> dict[str, Finding]:
    """What is found of these weeks, each with a day that is searched, too."""
    table = np.array([np.concatenate([np.full(WEEK - len(row), np.nan), row]) for row in rows.values()])
    now = START + (WEEK - 1) * STEP_SECONDS
    subjects = [Subject(full=1.0, fresh=12, project="default", name=f"vm/{name}") for name in rows]
    month, days = Table.of(np.full((1, 1344), np.nan)), table[:, -DAY:]
    batch = Batch(now, START, START, subjects, Table.of(table))
    batch.searches = [
        Search(at, month, ["cpu", "memory"], Table.of(np.array([day, 2 * day + 1]))) for at, day in enumerate(days)
    ]
    batch.peers = {"default": Peers([one.name for one in subjects], Table.of(days))}
    found = msgspec.msgpack.decode(analyse(msgspec.msgpack.encode(batch)), type=list[Finding])
    return dict(zip(rows, found, strict=True))


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return look(ROWS)


def search_of(finding: Finding) -> Searched:
    assert finding.searched is not None
    return finding.searched


def test_a_daily_peak_is_named_and_its_next_moment_and_its_half_height_are_told(findings: dict[str, Finding]) -> None:
    pattern = search_of(findings["days"]).patterns[0]
    assert pattern.type == "diurnal" and pattern.confidence > 0.9 and abs(pattern.cycle_seconds - 86_400) < 1800
    peak = pattern.peaks[0]
    assert START + 7 * 86_400 - STEP_SECONDS <= peak.at < START + 8 * 86_400
    assert abs((peak.at - START) % 86_400 / 3600 - 2) < 0.6
    assert peak.start < peak.at < peak.end and 1.5 < (peak.end - peak.start) / 3600 < 5
    assert len(pattern.fold) == 48 and max(pattern.fold) > 0.8 > 0.2 > min(pattern.fold)


def test_the_class_is_told_where_there_is_a_day_of_history(findings: dict[str, Finding]) -> None:
    found = search_of(findings["days"]).signature
    assert found.class_ == "cyclic" and 0.6 <= found.probability <= 1
    assert search_of(findings["40 samples"]).signature == search_of(findings["gaps"]).signature == Signature()


def test_forecasts_are_inside_their_intervals_and_follow_the_day(findings: dict[str, Finding]) -> None:
    found = findings["days"]
    assert set(found.prediction) == {"5m", "1h", "24h"} and not found.missing
    for name, ahead in (("5m", 1), ("1h", 12), ("24h", DAY)):
        one = found.prediction[name]
        assert one.low <= one.value <= one.high and one.seconds == ahead * STEP_SECONDS
        truth = draw_days(8 * DAY)[WEEK - 1 + ahead]  # it ends at midnight, two hours before the peak
        assert abs(one.value - truth) < 0.15, name
    assert found.stability is not None and 0.3 < found.stability < 1


def test_how_far_it_is_forecast_depends_on_the_history_and_not_on_the_others(findings: dict[str, Finding]) -> None:
    far = {"1": set(), "12": {"5m"}, "40": {"5m", "1h"}, "300": {"5m", "1h"}, "700": {"5m", "1h", "24h"}}
    assert {n: set(findings[f"{n} samples"].prediction) for n in far} == far
    alone = look({"40 samples": ROWS["40 samples"]})["40 samples"].prediction
    for name, one in findings["40 samples"].prediction.items():
        assert math.isclose(one.value, alone[name].value, rel_tol=1e-6), name


@pytest.mark.parametrize(
    ("row", "field", "why"),
    [
        ("1 samples", "prediction.5m", "less than an hour of history"),
        ("1 samples", "signature", "less than a day of history"),
        ("none", "prediction", "no history: nothing was measured in the last week"),
        ("40 samples", "patterns", "less than four hours of history"),
        ("300 samples", "prediction.24h", "less than two days of history"),
        ("stopped", "prediction", "nothing was measured in the last minutes"),
        ("gaps", "patterns", "more gaps than samples"),
        ("gaps", "signature", "more gaps than samples"),
    ],
)
def test_what_is_missing_has_its_reason(findings: dict[str, Finding], row: str, field: str, why: str) -> None:
    assert findings[row].missing[field].startswith(why)


@pytest.mark.parametrize("row", NO_CYCLES)
def test_no_cycle_is_invented_and_every_number_is_finite(findings: dict[str, Finding], row: str) -> None:
    found = findings[row]
    assert not search_of(found).patterns and (found.stability is None or 0 <= found.stability <= 1)
    assert all(math.isfinite(n) for one in found.prediction.values() for n in (one.value, one.low, one.high))


def test_what_shares_its_changes_is_related_and_what_shares_only_its_hour_is_not(findings: dict[str, Finding]) -> None:
    related = search_of(findings["days"]).correlations
    assert {(one.workload, one.other) for one in related} == {("", "memory"), ("vm/related", "cpu")}
    assert {one.workload for one in search_of(findings["same hour"]).correlations} == {""}
    assert not search_of(findings["constant"]).correlations


def test_a_jump_among_the_fresh_samples_is_told_once_with_the_usual_range() -> None:
    row = 0.2 + 0.05 * RANDOM.random(WEEK)
    row[-4:] = 0.95
    (one,) = find_anomalies(row, Subject(fresh=12), START)
    assert one.at == START + (WEEK - 4) * STEP_SECONDS and one.channel == "jump" and one.score >= 3
    assert 0.19 < one.low < one.high < 0.26
    assert not find_anomalies(row, Subject(fresh=0), START)
    assert not find_anomalies(row, Subject(fresh=12, silent=60), START)


def test_a_detector_that_learnt_at_once_judges_as_one_that_saw_each_sample() -> None:
    row = draw_days() + np.where(RANDOM.random(WEEK) < 0.01, RANDOM.random(WEEK), 0.0)
    row[100:130] = np.nan
    slow, quick = Detector(), Detector()
    for value in row[:1900]:
        slow.put(float(value))
    quick.learn(row[:1900], slow._silent)
    for value in row[1900:]:
        one, other = slow.put(float(value)), quick.put(float(value))
        assert math.isclose(one.score, other.score, abs_tol=1e-6) and one.channel == other.channel


def test_names_and_folds_of_cycles() -> None:
    names = {86_400: "diurnal", 84_000: "diurnal", 604_800: "weekly", 22_200: "every 6 h 10 min", 1800: "every 30 min"}
    assert {seconds: name_cycle(seconds) for seconds in names} == names
    fold = fold_median(np.array([1.0, 5.0, np.nan, 1.0, 5.0, 9.0] * 8), 3.0)
    assert fold == [1.0, 5.0, 9.0]
    month = Series(
        np.tile(np.repeat([0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.1], 48), 4) + 0.01 * RANDOM.random(1344), START, 1800
    )
    patterns, _ = find_patterns(Series(np.full(10, np.nan), START, STEP_SECONDS), month, START)
    assert [one.type for one in patterns] == ["weekly"]


def test_a_short_peak_is_told_where_it_is_and_not_where_a_wide_mean_has_it() -> None:
    hour = np.arange(WEEK) / 12 % 24
    row = np.where((hour >= 2) & (hour < 3), 3.0, 0.1) + 0.01 * RANDOM.random(WEEK)
    (pattern,), _ = find_patterns(Series(row, START, STEP_SECONDS), None, START + 3600)
    (peak,) = pattern.peaks
    assert peak.at - START == pytest.approx(2.5 * 3600, abs=1200) and peak.end - peak.start < 2 * 3600
    assert peak.value > 2.9 and 0.09 < pattern.troughs[0].value < 0.12


def test_means_of_gaps_are_gaps_and_no_series_is_forecast_of_nothing() -> None:
    assert np.array_equal(average(np.array([[9.0, 1, 2, 3, np.nan, np.nan, np.nan]]), 3), [[2, np.nan]], equal_nan=True)
    assert predict(np.full((2, 50), np.nan), STEP_SECONDS)[1].prediction == {}
