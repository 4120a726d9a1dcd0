"""Values against a model, and how often a device may speak."""

from __future__ import annotations

import math

import pytest

from weft.edge.device.check import Allowance, check_value, is_same
from weft.edge.device.model import Property

NUMBER = Property(minimum=-40, maximum=85)


@pytest.mark.parametrize(
    ("model", "value", "reason"),
    [
        (NUMBER, 21.5, ""),
        (NUMBER, 21, ""),
        (NUMBER, "21", "type"),
        (NUMBER, True, "type"),
        (NUMBER, None, "type"),
        (NUMBER, 85.1, "range"),
        (NUMBER, -41, "range"),
        (Property(), math.nan, "range"),
        (Property(), math.inf, "range"),
        (Property(type="integer"), 3.0, ""),
        (Property(type="integer"), 3.5, "type"),
        (Property(type="integer"), 1 << 60, "range"),
        (Property(type="boolean"), False, ""),
        (Property(type="boolean"), 0, "type"),
        (Property(type="string"), "a" * 1024, ""),
        (Property(type="string"), "a" * 1025, "size"),
        (Property(type="string", max_length=3), "abcd", "size"),
        (Property(type="string", max_length=5000), "a" * 1025, "size"),
        (Property(type="string", enum=("open", "shut")), "ajar", "enum"),
        (Property(type="colour"), "red", "type"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_reason(model: Property, value: object, reason: str) -> None:
    assert check_value(model, value) == reason


def test_numbers_within_the_deadband_are_the_same_and_true_is_not_one() -> None:
    assert is_same(Property(deadband=0.5), 20.0, 20.4)
    assert not is_same(Property(deadband=0.5), 20.0, 20.6)
    assert is_same(None, 0.1 + 0.2, 0.3)
    assert is_same(None, 3, 3.0)
    assert not is_same(Property(), True, 1)
    assert not is_same(Property(), "1", 1)


def test_a_device_speaks_as_often_as_its_rate_allows() -> None:
    allowance = Allowance(10.0, at=0.0)
    assert sum(allowance.takes(0.0) for _ in range(1000)) == 20
    assert sum(allowance.takes(1.0) for _ in range(1000)) == 10
    assert sum(allowance.takes(1.0 + tick / 100) for tick in range(1000)) == pytest.approx(100, abs=2)
