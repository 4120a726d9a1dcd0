from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_bytes, format_duration, format_time, parse_bytes, parse_cpu, parse_duration


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("256M", 256 * 2**20),
        ("256MiB", 256 * 2**20),
        ("256Mi", 256 * 2**20),
        ("1.5G", 3 * 2**29),
        ("32GB", 32 * 10**9),
        ("1024", 1024),
        (1024, 1024),
        ("1 GiB", 2**30),
        ("0", 0),
        ("2k", 2048),
        ("1T", 2**40),
    ],
)
def test_sizes_are_read_as_people_mean_them(text: object, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    "text", ["", "-5G", "5X", "G", "1.5", "1e400", "nan", True, None, [], "99999P", "5 5G", "0x10", "１２８M"]
)
def test_what_is_no_size_is_refused_naming_the_field(text: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_bytes(text, "spec.memory")
    assert "spec.memory" in caught.value.message
    assert caught.value.field == "spec.memory"


def test_a_negative_size_says_negative() -> None:
    with pytest.raises(InvalidInput, match="negative"):
        parse_bytes("-5G", "memory")


@given(st.integers(0, 2**50))
def test_a_whole_number_of_bytes_is_itself(value: int) -> None:
    assert parse_bytes(value) == value == parse_bytes(str(value))


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_clear_error(text: str) -> None:
    for parse in (parse_bytes, parse_cpu, parse_duration):
        try:
            assert parse(text, "f") >= 0
        except InvalidInput as error:
            assert error.message.startswith("f")


def test_cores() -> None:
    assert parse_cpu("500m") == 0.5
    assert parse_cpu(2) == 2.0
    for bad in ("0", "-1", "inf", "nan", "two", True, ""):
        with pytest.raises(InvalidInput):
            parse_cpu(bad)


@pytest.mark.parametrize(
    ("text", "value"), [("30s", 30), ("1h30m", 5400), ("500ms", 0.5), ("90", 90), (5, 5), ("7d", 604800)]
)
def test_durations(text: object, value: float) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize("text", ["-5s", "-1", "5x", "s", "", "nan", "inf", "1h 30", "300y", "٣", "٣s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_duration(text)


def test_sizes_are_shown_in_the_unit_that_fits() -> None:
    assert format_bytes(256 * 2**20) == "256 MiB"
    assert format_bytes(2**30) == "1.0 GiB"
    assert format_bytes(0) == "0 B"


def test_durations_are_shown_as_people_type_them() -> None:
    shown = {
        0.25: "0.25s",
        59.6: "1m",
        90.0: "1m30s",
        3600.0: "1h",
        5400.0: "1h30m",
        3605.0: "1h",
        86400.0: "1d",
        90000.0: "1d1h",
    }
    assert {seconds: format_duration(seconds) for seconds in shown} == shown
    assert all(parse_duration(text) <= seconds + 0.5 for seconds, text in shown.items())


def test_times_for_people_are_to_the_minute() -> None:
    assert format_time(1795518059.9) == "2026-11-24 11:00 UTC"
