"""The oracle of the department's soak finds what it is there for."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.soak.department.oracle import (
    LATE_END_SECONDS,
    Held,
    Turn,
    count_core_seconds,
    find_double_booked,
    find_miscounted,
    find_over_quota,
    find_overdue,
    find_possible,
)

NOW = 1000.0
NODES = [{"name": "n1", "report": {"cpu": 8.0, "memory": 1000}}]


def place(name: str, cpu: float, *, state: str = "running", reason: str = "", memory: int = 1, **lease: Any) -> Any:
    return {
        "spec": {
            "node": "n1",
            "workload": {"name": name, "project": "lab"},
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
    made = [{"project": "lab", "spec": {"cpu": 2.0, "memory": 10}} for _ in range(3)]
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
