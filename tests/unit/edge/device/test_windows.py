"""Tumbling windows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.edge.device.model import SamplingWindow
from weft.edge.device.window import OpenWindow


def test_a_window_gives_its_measures_when_it_has_ended() -> None:
    window = OpenWindow(SamplingWindow(60))
    for second, value in ((0, 4.0), (20, 8.0), (59, 6.0)):
        assert not window.add(value, second)
        assert window.closed == {}
    assert window.add(100.0, 60)
    assert window.closed == {
        "mean": 6.0, "min": 4.0, "max": 8.0, "count": 3.0, "last": 6.0, "rate": pytest.approx(2 / 59),
    }  # fmt: skip


def test_the_rate_of_a_counter_goes_on_from_the_window_before() -> None:
    window = OpenWindow(SamplingWindow(10, ("rate",)))
    for second in range(0, 31, 5):
        window.add(second * 3.0, second)
    assert window.closed == {"rate": pytest.approx(3.0)}


def test_an_old_window_never_stands_for_one_without_values() -> None:
    window = OpenWindow(SamplingWindow(10))
    window.add(1.0, 3)
    assert window.close(10)
    assert window.closed["count"] == 1
    assert window.close(20)
    assert window.closed == {}
    assert not window.close(30)
    window.add(1.0, 31)
    window.add(1.0, 55)
    assert window.closed == {}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_measures_are_those_of_the_list(values: list[float]) -> None:
    window = OpenWindow(SamplingWindow(100))
    for index, value in enumerate(values):
        window.add(value, index)
    window.close(100)
    assert window.closed["mean"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert (window.closed["min"], window.closed["max"]) == (min(values), max(values))
    assert window.closed["count"] == len(values)
