"""A reservation's own record: how it is shown, waited for, and what its refusal says."""

from __future__ import annotations

from typing import Any

from weft.kinds.reservation import RESERVATION, ReservationSpec, ReservationStatus
from weft.objects.errors import Unplaceable

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
    return {column.title: column.value(obj) for column in RESERVATION.columns if column.title != "AGE"}


def test_a_row_shows_what_is_kept_where_until_when_and_what_is_free() -> None:
    free = {"cpu": 6.5, "memory": 15 * GIB, "gpus": 1.0}
    row = cells(make("Active", start=0.0, end=3600.0, slots={"n2": 1, "n1": 1}, free=free))
    assert (row["NODES"], row["FREE"]) == ("n1:1,n2:1", "6.5 cores, 15.0 GiB, 1 GPUs")
    assert (row["START"], row["END"]) == ("1970-01-01T00:00:00Z", "1970-01-01T01:00:00Z")
    refused = cells(make("Rejected", message="no node has 4 cores"))
    assert (refused["NODES"], refused["FREE"], refused["START"]) == ("–", "–", "–")
    assert refused["NOTE"] == "no node has 4 cores"


def test_a_create_ends_when_it_is_accepted_and_fails_when_it_is_refused() -> None:
    goal = RESERVATION.goals["create"]
    assert [goal.reached(make(state)) for state in ("Requested", "Scheduled", "Active")] == [False, True, True]
    find = RESERVATION.find_failure
    assert find is not None and find(make("Requested"), "reservation/class", goal) is None
    refused = find(make("Rejected", message="no node has 4 cores"), "reservation/class", goal)
    assert isinstance(refused, Unplaceable) and refused.token == "leaseConflict" and "no node has" in refused.message
    over = find(make("Done"), "reservation/class", goal)
    assert isinstance(over, Unplaceable) and over.token == "reservationOver"


def test_it_counts_all_its_slots_until_it_is_over() -> None:
    assert RESERVATION.counts is not None
    spec = ReservationSpec(cpu=4.0, memory=8 * GIB, gpus=1, count=3, duration=60.0)
    for state in ("Requested", "Scheduled", "Active"):
        amounts = RESERVATION.counts(spec, ReservationStatus(state=state)).amounts
        assert amounts == {"cpu": 12.0, "memory": 24 * GIB, "gpus": 3}
    for state in ("Done", "Rejected"):
        assert RESERVATION.counts(spec, ReservationStatus(state=state)).amounts == {}
