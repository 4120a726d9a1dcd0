"""What a profile expects of the hours to come, shortages, and windows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.insight.course import (
    CALM,
    HOUR_SECONDS,
    NEAR_HOURS,
    SHORT,
    STALE_SECONDS,
    choose_window,
    expect,
    expect_hours,
    find_shortage,
    is_calm,
    is_urgent,
    judge,
)
from weft.kinds.profile import FOLD_POINTS, Pattern, Prediction, ProfileStatus

NOW = 1_700_000_000.0
DAY = 86_400.0


def told(*, value: float = 2.0, high: float = 3.0, later: float = 2.0, **more: object) -> ProfileStatus:
    prediction = {
        "1h": Prediction(seconds=3600.0, value=value, low=0.0, high=high, method="told"),
        "24h": Prediction(seconds=DAY, value=later, low=0.0, high=later + 1.0, method="told"),
    }
    fields = {"looked_at": NOW, "sampled_at": NOW, "unit": "cores", "full": 10.0, "prediction": prediction, **more}
    return ProfileStatus(**fields)  # type: ignore[arg-type]


def daily(peak_hour: float, height: float = 8.0, confidence: float = 0.95) -> Pattern:
    """Between 1 core and 1 + height, most at so many hours from now."""
    hours = (np.arange(FOLD_POINTS) + 0.5) / FOLD_POINTS * 24
    fold = 1.0 + height * np.maximum(0.0, np.cos((hours - peak_hour) / 24 * 2 * math.pi)) ** 4
    return Pattern(type="diurnal", cycle_seconds=DAY, confidence=confidence, fold=fold.tolist(), fold_at=NOW)


def test_between_the_horizons_values_are_interpolated_and_beyond_they_stay() -> None:
    course = expect(told(later=6.0), NOW, [0.0, HOUR_SECONDS, 12.5 * HOUR_SECONDS, DAY, 2 * DAY])
    assert course is not None
    assert course.value.tolist() == pytest.approx([2.0, 2.0, 4.0, 6.0, 6.0])
    assert course.high.tolist() == pytest.approx([3.0, 3.0, 5.0, 7.0, 7.0])


def test_a_sure_cycle_is_followed_and_an_unsure_one_isnt() -> None:
    sure, unsure = daily(8.0), daily(8.0, confidence=0.8)
    course = expect_hours(told(value=1.0, high=1.5, patterns=[sure]), NOW, 24)
    assert course is not None and 7 <= int(course.value.argmax()) <= 8 and course.value.max() > 8.0
    assert (course.high >= course.value).all()
    flat = expect_hours(told(value=1.0, high=1.5, patterns=[unsure]), NOW, 24)
    assert flat is not None and flat.value.max() <= 2.0


def test_an_old_or_empty_profile_forecasts_nothing() -> None:
    assert expect(ProfileStatus(looked_at=NOW), NOW, [0.0]) is None
    assert expect(told(), NOW + STALE_SECONDS + 1, [0.0]) is None
    assert find_shortage(told(full=0.0, high=99.0), NOW) is None and not is_calm(ProfileStatus(looked_at=NOW), NOW)


def test_a_shortage_lasts_two_hours_and_says_how_much_must_go() -> None:
    assert find_shortage(told(), NOW) is None and is_calm(told(), NOW)
    short = find_shortage(told(value=1.0, high=1.5, patterns=[daily(8.0, height=10.0)]), NOW)
    assert short is not None and 4 <= short.first <= 7 <= short.last <= 11
    assert short.excess == pytest.approx(float(short.course.high.max()) - SHORT * 10.0)
    edge = told(value=8.5, high=SHORT * 10.0 + 0.2, later=7.0)
    assert find_shortage(edge, NOW) is None and not is_calm(edge, NOW)
    assert is_calm(told(value=CALM * 10.0 - 0.1, high=12.0, later=5.0), NOW)
    assert is_calm(told(value=8.5, high=SHORT * 10.0 - 0.1, later=5.0), NOW)


@pytest.mark.parametrize(
    ("status", "urgent"),
    [
        (told(value=9.5, high=9.8, patterns=[daily(2.0, height=10.0)]), True),
        (told(value=1.0, high=1.5, patterns=[daily(8.0, height=10.0)]), False),  # another look comes before it
        (told(value=9.1, high=13.0, patterns=[daily(0.5, height=8.1)]), False),  # for an hour, but for its upper end
        (told(value=9.5, high=9.8, later=9.5), False),  # who knows whether it lasts
    ],
)
def test_a_shortage_that_no_second_look_would_see_in_time_is_urgent_if_a_cycle_says_so(
    status: ProfileStatus, urgent: bool
) -> None:
    short = find_shortage(status, NOW)
    assert short is not None and is_urgent(status, short) == urgent


def test_without_a_cycle_a_shortage_is_looked_for_in_the_next_hours_only() -> None:
    status = told(value=9.5, high=9.8, later=20.0)
    short = find_shortage(status, NOW)
    assert short is not None and (short.first, short.last) == (0, NEAR_HOURS - 1)
    assert find_shortage(told(value=8.0, high=8.5, later=12.0), NOW) is None


def test_a_window_lies_where_the_cycle_is_low_and_its_quality_says_how_low() -> None:
    profile = told(patterns=[daily(12.0)])
    window = choose_window(profile, NOW, NOW + DAY, 600.0)
    usual = float(np.mean(profile.patterns[0].fold))
    assert window.end - window.start == 1800.0 and not 5 < (window.start - NOW) / HOUR_SECONDS < 19
    assert window.quality == pytest.approx(0.95 * (1.0 - 1.0 / usual), abs=0.02)
    assert "confidence 0.95" in window.reason and "use is low" in window.reason
    peak = judge(profile, NOW + 12 * HOUR_SECONDS, NOW + 12.5 * HOUR_SECONDS)
    assert peak[0] == 0.0 and "not lower" in peak[1]


def test_without_a_cycle_any_time_is_as_good_so_the_first_is_taken() -> None:
    for profile in (None, told()):
        window = choose_window(profile, NOW, NOW + DAY, 7200.0)
        assert (window.start, window.end, window.quality) == (NOW, NOW + 7200.0, 0.0)
        assert window.reason == "no cycle found: any time is as good"
    short = choose_window(told(patterns=[daily(12.0)]), NOW, NOW + 600.0)
    assert NOW <= short.start and short.end <= NOW + 600.0
