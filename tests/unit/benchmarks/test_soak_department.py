"""The oracle of the department's soak finds what it is there for."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.soak.department.oracle import (
    LATE_END_SECONDS,
    Gang,
    Held,
    Turn,
    count_core_seconds,
    find_above_ceiling,
    find_double_booked,
    find_full_slots,
    find_half_reserved,
    find_miscounted,
    find_over_budget,
    find_over_quota,
    find_overdue,
    find_possible,
    find_split_gangs,
    find_twice_placed,
)

NOW = 1000.0
NODES = [{"name": "n1", "report": {"cpu": 8.0, "memory": 1000}}]


def place(name: str, cpu: float, *, state: str = "running", reason: str = "", memory: int = 1, **lease: Any) -> Any:
    return {
        "name": f"n1.{name}",
        "deleting_since": None,
        "spec": {
            "node": "n1",
            "role": "active",
            "workload": {"kind": "vm", "name": name, "project": "lab"},
            "resources": {"cpu": cpu, "memory": memory},
            "grace_seconds": 1.0,
            "lease": lease or None,
        },
        "report": {"state": state, "reason": reason},
    }


@pytest.mark.parametrize(
    ("places", "found"),
    [
        ([place("a", 5), place("b", 3)], []),
        ([place("a", 5), place("b", 4)], ["is promised to too many in 0.0 s", "runs more than it has"]),
        ([place("a", 1, memory=600), place("b", 1, memory=600)], ["is promised to too many", "runs more"]),
        ([place("a", 5, end=NOW + 50), place("b", 5, state="pending", prepare_at=NOW + 50, end=NOW + 90)], []),
        (
            [place("a", 5, end=NOW + 60), place("b", 5, state="pending", prepare_at=NOW + 50, end=NOW + 90)],
            ["is promised to too many in 50.0 s"],
        ),
        ([place("a", 5), place("b", 5, state="stopped", reason="leaseEnded", end=NOW - 1)], []),
        ([place("a", 5), place("b", 5, state="stopping", reason="leaseEnded", end=NOW + 9, cancelled=True)], []),
        ([place("a", 5, end=NOW - 1), place("b", 5, prepare_at=NOW - 1, end=NOW + 90)], []),  # it is being ended
        (
            [
                place("a", 6, suspension={"winner": "vm/b", "at": NOW - 2}),
                place("b", 6, state="pending", prepare_at=NOW - 2, end=NOW + 9),
            ],
            [],
        ),
        (
            [
                place("a", 6, suspension={"winner": "vm/b", "at": NOW - 2}),
                place("b", 6, prepare_at=NOW - 2, end=NOW + 1),
            ],
            ["runs more than it has"],
        ),
        ([place("a", 6, end=NOW + 60, cancelled=True), place("b", 3, state="pending", end=NOW + 90)], ["too many"]),
    ],
)
def test_a_node_that_is_promised_twice_is_found(places: list[Any], found: list[str]) -> None:
    told = find_double_booked(places, NODES, NOW)
    assert len(told) == len(found) and all(part in one for part, one in zip(found, told, strict=True))


def test_a_guest_that_outlives_its_lease_is_found() -> None:
    late = place("late", 1, end=NOW - LATE_END_SECONDS - 2)
    assert find_overdue([late], NOW, {"n1"}) == []  # nobody knows of it
    assert find_overdue([place("a", 1, end=NOW - 2), place("b", 1), late], NOW) == [
        f"late runs {LATE_END_SECONDS + 1:.0f} s after its lease's end"
    ]


@pytest.mark.parametrize(
    ("began", "ended", "possible"),
    [
        (0.0, 1.0, {False}),  # before it has any rights
        (9.5, 10.5, {True, False}),
        (10.8, 10.9, {True, False}),  # a second after the answer at the latest
        (12.0, 12.1, {True}),
        (19.0, 20.1, {True, False}),
        (20.9, 22.0, {True, False}),
        (21.4, 22.0, {False}),  # the change was answered at 20.3
    ],
)
def test_rights_count_a_second_after_the_answer_and_may_from_the_request_on(
    began: float, ended: float, possible: set[bool]
) -> None:
    turns = [Turn(10.0, 10.2, True), Turn(20.0, 20.3, False)]
    assert find_possible(turns, began, ended) == possible


def test_a_change_without_an_answer_may_count_or_not() -> None:
    turns = [Turn(10.0, 10.2, True), Turn(20.0, float("inf"), False)]
    assert find_possible(turns, 90.0, 91.0) == {True, False}


def test_a_project_beyond_its_quota_is_found() -> None:
    made = [{"kind": "vm", "project": "lab", "spec": {"cpu": 2.0, "memory": 10}, "status": {}} for _ in range(3)]
    assert find_over_quota(made, {"lab": {"cpu": 6, "instances": 3, "memory": 30}}) == []
    assert find_over_quota(made, {"lab": {"cpu": 5}}) == ["project lab has cpu 6 of 5"]
    assert find_over_quota(made, {"lab": {"instances": 2}}) == ["project lab has instances 3 of 2"]


def test_accounting_that_lost_time_or_counted_it_twice_is_found() -> None:
    record = {"spec": {"project": "lab"}, "status": {"entries": [{"cpu": 15.0}, {"cpu": 25.0}]}}
    assert count_core_seconds([record], ["lab", "other"]) == {"lab": 40.0, "other": 0.0}
    held = [Held("lab", 2.0, 0.0, 0.0, 20.0, 22.0)]
    assert find_miscounted(held, {"lab": 40.0}) == []
    assert find_miscounted(held, {"lab": 38.0}) == ["accounting has 38 core-seconds of project lab, which had 40 to 44"]
    assert find_miscounted(held, {"lab": 46.0}) != []


def test_what_is_reserved_counts_once_with_all_that_is_in_it() -> None:
    size = {"cpu": 2.0, "memory": 10}
    reserved = {"kind": "reservation", "project": "lab", "spec": {**size, "count": 2}, "status": {"state": "Active"}}
    inside = {"kind": "vm", "project": "lab", "spec": {**size, "reservation": "class"}, "status": {}}
    assert find_over_quota([reserved, inside], {"lab": {"cpu": 4, "memory": 20, "instances": 1}}) == []
    assert find_over_quota([reserved, inside], {"lab": {"cpu": 3}}) == ["project lab has cpu 4 of 3"]
    over = {**reserved, "status": {"state": "Done"}}
    assert find_over_quota([over, inside], {"lab": {"cpu": 0, "instances": 1}}) == []


def within(slot: Any, name: str, cpu: float, **changed: Any) -> Any:
    one = place(name, cpu, end=NOW + 90)
    one["spec"] |= {"slot": slot["name"], **changed}
    return one


def slot_of(name: str, cpu: float, **more: Any) -> Any:
    one = place(name, cpu, state="pending", memory=9, prepare_at=NOW, end=NOW + 90)
    one["spec"] |= {"role": "reserved", "workload": {"kind": "reservation", "name": name, "project": "lab"}}
    return one | more


def test_a_slot_that_is_given_to_others_or_to_too_many_is_found() -> None:
    slot = slot_of("class", 5)
    full = [slot, within(slot, "a", 3), within(slot, "b", 2)]
    assert find_full_slots(full) == [] and find_double_booked([*full, place("c", 3)], NODES, NOW) == []
    assert "has 5 cpu, and in it are a 3, b 2, c 1" in find_full_slots([*full, within(slot, "c", 1)])[0]
    assert "is used from elsewhere" in find_full_slots([slot, within(slot, "a", 3, node="n2")])[0]
    assert find_double_booked([slot, place("thief", 4)], NODES, NOW) != []  # also where nobody uses the slot


def test_a_reservation_that_is_not_whole_and_does_not_say_so_is_found() -> None:
    def reservation(state: str, message: str = "") -> Any:
        return {"name": "class", "spec": {"count": 2}, "status": {"state": state, "message": message}}

    one, two = [slot_of("class", 1)], [slot_of("class", 1), slot_of("class", 1)]
    assert find_half_reserved(two, [reservation("Active")]) == []
    assert find_half_reserved([], [reservation("Rejected", "no node has that")]) == []
    assert find_half_reserved(one, [reservation("Active", "1 of 2 slots were lost")]) == []
    assert find_half_reserved(one, [reservation("Active")]) == ["reservation/class is Active with 1 of 2 slots"]
    assert find_half_reserved(one, [reservation("Rejected")]) != []


def test_half_a_gang_is_found() -> None:
    gangs = {"web": Gang(2, ["a", "b"])}
    assert find_split_gangs([], gangs) == (set(), [])
    assert find_split_gangs([place("a", 1), place("b", 1)], gangs) == ({"web"}, [])
    assert find_split_gangs([place("a", 1), place("other", 1)], gangs)[1] == ["of gang web only a have a place, of 2"]


def test_a_workload_with_two_places_is_found() -> None:
    leaving = place("a", 1, state="pending", end=NOW + 9) | {"deleting_since": NOW}
    assert find_twice_placed([leaving, place("a", 1)]) == []
    assert find_double_booked([leaving, place("b", 8)], NODES, NOW) == []  # it begins elsewhere
    assert find_twice_placed([place("a", 1), place("a", 1)]) == ["a has places on n1 and n1"]


def test_a_budget_and_a_ceiling_that_are_exceeded_are_found() -> None:
    down = [place(name, 1, suspension={"winner": "vm/x", "at": NOW}) for name in "ab"]
    assert find_over_budget(down, {"a"}, 1) == []
    assert find_over_budget(down, {"a", "b"}, 1) == ["a, b are suspended at once, of which 1 may"]
    one = {"kind": "vm", "name": "a", "project": "lab", "spec": {"lease": {"priority": 5}}}
    assert find_above_ceiling([one], {"lab": 5}) == [] and find_above_ceiling([one], {"lab": None}) == []
    assert find_above_ceiling([one], {"lab": 4}) == ["vm/a of lab has priority 5, above 4"]
