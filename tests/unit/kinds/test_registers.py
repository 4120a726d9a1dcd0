"""What a device gives back of a number that it was set to."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.kinds.fields.device.affordance import Property, are_equal
from weft.kinds.fields.device.register import find_held, list_held, shorten_single

SINGLE = 21.700000762939453  # 21.7 in 32 bits


@pytest.mark.parametrize(
    ("href", "wanted", "held"),
    [
        ("holding/50?type=float32", 21.7, 21.7),
        ("holding/50?type=float32&scale=0.1", 21.7, 21.7),
        ("holding/50?type=int16&scale=0.1", -1.74, -1.7),
        ("holding/50?type=int16&scale=0.5", 21.7, 21.5),
        ("holding/50", 21.7, 22),
        ("holding/50?type=float64&words=little", 21.7, 21.7),
        ("holding/50?type=uint16", -1, -1),  # it can't be written at all
        ("holding/50?type=text&registers=8", 3, 3),
        ("holding/50?scale=0", 3.5, 3.5),
        ("input/50", 21.7, 21.7),
        ("ns=2;s=holding/50", 21.7, 21.7),
        ("/v/setpoint", 21.7, 21.7),
        ("", 21.7, 21.7),
        ("holding/50", True, True),
        ("holding/50", "open", "open"),
    ],
)
def test_a_register_holds_what_comes_back_by_the_way_that_the_number_went(
    href: str, wanted: object, held: object
) -> None:
    found = find_held(href, wanted)  # type: ignore[arg-type]
    assert (found, type(found)) == (held, type(held))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_of_32_bits_is_shown_with_the_digits_that_it_has(number: float) -> None:
    shown = shorten_single(number)
    assert struct.pack(">f", shown) == struct.pack(">f", number)
    assert len(f"{shown:g}") <= len(repr(number)) + 3


def test_it_is_shown_as_people_wrote_it() -> None:
    assert shorten_single(SINGLE) == 21.7 and shorten_single(229.00999450683594) == 229.01
    assert shorten_single(16777216.0) == 16777216.0 and math.isnan(shorten_single(math.nan))
    assert shorten_single(math.inf) == math.inf


def test_a_device_with_32_bits_that_reports_all_their_digits_has_the_value() -> None:
    assert SINGLE in list_held("", 21.7) and 21.7 in list_held("", 21.7)
    assert 123456789.12 not in list_held("", 123456789.13)  # near each other, but a device of 64 bits says both
    assert list(list_held("", 1e300)) == [1e300]


def test_a_desired_value_is_there_when_the_device_reports_what_it_can_hold_of_it() -> None:
    tenths = Property(type="number", href="holding/0?type=int16&scale=0.1")
    assert are_equal(tenths, -1.74, -1.7) and not are_equal(tenths, -1.74, -1.8) and not are_equal(tenths, -1.7, -1.74)
    assert are_equal(Property(type="number"), 21.7, SINGLE) and not are_equal(Property(type="number"), 21.7, 21.71)
    assert not are_equal(Property(type="number"), 21.7, "21.7")
