"""A schedule is read as cron reads it, in its own time zone; what can't be read is refused with its field."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.objects.errors import InvalidInput
from weft.objects.schedule import check_schedule, next_run

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("text", "after", "due"),
    [
        ("*/5 * * * *", "2026-03-01 10:00", "2026-03-01 10:05"),
        ("*/5 * * * *", "2026-03-01 10:04:59.9", "2026-03-01 10:05"),
        ("30 2 * * 1-5", "2026-03-06 02:30", "2026-03-09 02:30"),  # a Friday
        ("0 0 29 2 *", "2026-03-01", "2028-02-29"),
        ("0 12 L * *", "2026-02-01", "2026-02-28 12:00"),
        ("@daily", "2026-03-01 00:00", "2026-03-02 00:00"),
        ("@Hourly", "2026-03-01 00:59", "2026-03-01 01:00"),
    ],
)
def test_the_next_run_comes_strictly_after(text: str, after: str, due: str) -> None:
    check_schedule(text)
    assert next_run(text, "UTC", at(after)) == at(due)


def test_a_schedule_holds_in_its_time_zone_the_whole_year() -> None:
    assert next_run("0 9 * * *", BERLIN, at("2026-01-10")) == at("2026-01-10 08:00")
    assert next_run("0 9 * * *", BERLIN, at("2026-07-10")) == at("2026-07-10 07:00")


def test_what_falls_into_the_hour_left_out_runs_right_after_it() -> None:
    # In 2026 Berlin's clocks go from 02:00 to 03:00 on 29 March: 01:00 UTC.
    assert next_run("30 2 * * *", BERLIN, at("2026-03-28 12:00")) == at("2026-03-29 01:00")
    assert next_run("30 2 * * *", BERLIN, at("2026-03-29 01:00")) == at("2026-03-30 00:30")


def test_what_falls_into_the_hour_that_comes_twice_runs_once() -> None:
    # On 25 October 02:30 is 00:30 UTC and again 01:30 UTC.
    first = next_run("30 2 * * *", BERLIN, at("2026-10-24 12:00"))
    assert first == at("2026-10-25 00:30")
    assert next_run("30 2 * * *", BERLIN, first) == at("2026-10-26 01:30")
    assert next_run("30 2 * * *", BERLIN, at("2026-10-25 01:10")) == at("2026-10-26 01:30")


def test_what_runs_every_few_minutes_runs_so_through_both_changes() -> None:
    for start in (at("2026-03-28 23:00"), at("2026-10-24 23:00")):
        moment = start
        for _ in range(16):
            due = next_run("*/15 * * * *", BERLIN, moment)
            assert due == moment + 900
            moment = due


@pytest.mark.parametrize(
    "text",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "0 0 30 2 *",
        "@reboot",
        "a b c d e",
        "*/0 * * * *",
        "0-59/99999999999 * * * *",
        "0 " * 500,
    ],
)
def test_what_is_no_schedule_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_schedule(text)
    assert caught.value.field == "spec.schedule" and "MINUTE HOUR" in (caught.value.hint or "")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "/etc/localtime", "Africa", "\0", "ü"])
def test_what_is_no_time_zone_is_refused_with_its_field(zone: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_schedule("@daily", zone)
    assert caught.value.field == "spec.time_zone"


FIELDS = st.text("0123456789*/,-L#W?AMONJ ", max_size=12)


@given(st.lists(FIELDS, min_size=5, max_size=5).map(" ".join), st.sampled_from(["UTC", BERLIN]), st.integers(0, 2**32))
def test_any_text_is_a_schedule_that_goes_on_or_is_refused(text: str, zone: str, now: int) -> None:
    try:
        check_schedule(text, zone)
    except InvalidInput:
        return
    assert datetime.fromtimestamp(next_run(text, zone, now), UTC).timestamp() > now
