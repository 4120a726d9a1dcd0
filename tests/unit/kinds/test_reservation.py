"""A reservation's own record: how it is shown, waited for, and what its refusal says."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.reservation import RESERVATION, ExtendInput, ReservationSpec, ReservationStatus, check_reservation
from weft.objects.errors import InvalidInput, Unplaceable
from weft.objects.quantity import parse_moment

GIB = 1 << 30


def make(state: str, **status: Any) -> dict[str, Any]:
    spec = {"cpu": 4.0, "memory": 8 * GIB, "count": 2, "gpus": 0}
    return {
        "kind": "reservation",
        "name": "class",
        "spec": spec,
        "status": {"state": state, **status},
        "created_at": 0.0,
    }


def cells(obj: dict[str, Any]) -> dict[str, str]:
    return {column.title: column.value(obj) for column in RESERVATION.display.columns if column.title != "AGE"}


def test_a_row_shows_what_is_kept_where_until_when_and_what_is_free() -> None:
    free = {"cpu": 6.5, "memory": 15 * GIB, "gpus": 1.0}
    row = cells(make("Active", start=0.0, end=3600.0, slots={"n2": 1, "n1": 1}, free=free))
    assert (row["NODES"], row["FREE"]) == ("n1:1,n2:1", "6.5 cores, 15.0 GiB, 1 GPUs")
    assert (row["START"], row["END"]) == ("1970-01-01 00:00 UTC", "1970-01-01 01:00 UTC")
    refused = cells(make("Rejected", message="no node has 4 cores"))
    assert (refused["NODES"], refused["FREE"], refused["START"]) == ("–", "–", "–")
    assert refused["NOTE"] == "no node has 4 cores"


def test_a_create_ends_when_it_is_accepted_and_fails_when_it_is_refused() -> None:
    goal = RESERVATION.lifetime.goals["create"]
    assert [goal.reached(make(state)) for state in ("Requested", "Scheduled", "Active")] == [False, True, True]
    find = RESERVATION.lifetime.find_failure
    assert find is not None and find(make("Requested"), "reservation/class", goal) is None
    refused = find(make("Rejected", message="no node has 4 cores"), "reservation/class", goal)
    assert isinstance(refused, Unplaceable) and refused.token == "leaseConflict" and "no node has" in refused.message
    over = find(make("Done"), "reservation/class", goal)
    assert isinstance(over, Unplaceable) and over.token == "reservationOver"


def test_an_extension_ends_when_it_is_made_and_fails_when_it_is_refused() -> None:
    goal, find = RESERVATION.lifetime.goals["extend"], RESERVATION.lifetime.find_failure
    assert find is not None
    longer = make("Active", start=1000.0, end=4600.0, message="it can't last until X: until Y at most")
    longer["spec"]["duration"], longer["generation"] = 7200.0, 2
    assert not goal.reached(longer) and find(longer, "reservation/class", goal) is None  # not answered yet
    longer["conditions"] = [{"type": "Placed", "reason": "leaseConflict", "generation": 1}]
    assert find(longer, "reservation/class", goal) is None  # the answer to an earlier one
    longer["conditions"][0]["generation"] = 2
    refused = find(longer, "reservation/class", goal)
    assert isinstance(refused, Unplaceable) and refused.token == "leaseConflict" and "until Y" in refused.message
    longer["status"]["end"] = 8200.0
    assert goal.reached(longer) and find(longer, "reservation/class", goal) is None


@pytest.mark.parametrize(
    ("end", "later"),
    [
        ("2028-02-28T23:30:00Z", "2028-02-29T23:30:00Z"),  # a leap day
        ("2027-03-27T12:00:00Z", "2027-03-28T12:00:00Z"),  # 23 hours by a clock in Berlin, and a day of 24 all the same
        ("2026-12-31T23:59:59Z", "2027-01-01T23:59:59Z"),
    ],
)
def test_a_day_more_is_24_hours(end: str, later: str) -> None:
    verb, obj = RESERVATION.verb("extend"), make("Active", start=0.0, end=parse_moment(end))
    assert verb is not None and verb.change is not None
    obj["spec"]["end"], obj["status"]["start"] = parse_moment(end), parse_moment(end) - 3600.0
    assert verb.change(obj, ExtendInput(by=86400.0))["end"] == parse_moment(later)


def test_it_counts_all_its_slots_until_it_is_over() -> None:
    assert RESERVATION.admission.counts is not None
    spec = ReservationSpec(cpu=4.0, memory=8 * GIB, gpus=1, count=3, duration=60.0)
    for state in ("Requested", "Scheduled", "Active"):
        amounts = RESERVATION.admission.counts(spec, ReservationStatus(state=state)).amounts
        assert amounts == {"cpu": 12.0, "memory": 24 * GIB, "gpus": 3}
    for state in ("Done", "Rejected"):
        assert RESERVATION.admission.counts(spec, ReservationStatus(state=state)).amounts == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "a reservation needs this or spec.end"), ({"duration": 60.0, "end": 60.0}, "not both")],
)
def test_a_reservation_has_one_end(given: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        check_reservation(ReservationSpec(cpu=1.0, memory=GIB, **given))  # type: ignore[arg-type]
