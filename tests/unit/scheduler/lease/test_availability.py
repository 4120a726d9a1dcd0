"""What of a node is free, and when, against a list of all that was taken."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.scheduler.lease.availability import Availability

CAPACITY = (4.0, 8.0)
TIMES = st.integers(0, 20)
TAKEN = st.lists(
    st.tuples(TIMES, TIMES, st.sampled_from([(1.0, 0.0), (0.5, 3.0), (0.1, 0.2), (2.0, 2.0)])), max_size=12
)


def free_at(taken: list[tuple[int, int, tuple[float, float]]], time: float) -> list[float]:
    return [
        there - sum(amounts[number] for start, end, amounts in taken if start <= time < end)
        for number, there in enumerate(CAPACITY)
    ]


@settings(max_examples=examples(300), deadline=None)
@given(TAKEN, TIMES, TIMES, st.data())
def test_it_answers_as_the_plain_list_does(
    taken: list[tuple[int, int, tuple[float, float]]], start: int, end: int, data: st.DataObject
) -> None:
    node = Availability(CAPACITY)
    for first, last, amounts in taken:
        node.take(first, last, amounts)
    back = data.draw(st.lists(st.sampled_from(taken), unique=True)) if taken else []
    for first, last, amounts in back:
        node.take(first, last, [-amount for amount in amounts])
        taken = [one for one in taken if one != (first, last, amounts)] + [(first, last, amounts)] * (
            taken.count((first, last, amounts)) - 1
        )
    wanted = (1.5, 2.0)

    def is_free(time: float) -> bool:
        return all(want <= free + 1e-6 for want, free in zip(wanted, free_at(taken, time), strict=True))

    assert [round(level, 6) for level in node.free_at(start)] == [round(level, 6) for level in free_at(taken, start)]
    if start < end:
        assert node.fits(start, end, wanted) == all(is_free(time) for time in range(start, end))
    until = next((time for time in range(start, 22) if not is_free(time)), math.inf)
    assert node.free_until(start, wanted) == until
    whole = [time for time in range(1, 21) if free_at(taken, time) != free_at(taken, time - 1)]
    found = list(node.changes(0, 21))
    assert [time for time in whole if time not in found and _differs(taken, time)] == []


def _differs(taken: list[tuple[int, int, tuple[float, float]]], time: int) -> bool:
    pairs = zip(free_at(taken, time), free_at(taken, time - 1), strict=True)
    return any(abs(now - before) > 1e-6 for now, before in pairs)


def test_equal_steps_are_one_and_what_has_passed_can_be_dropped() -> None:
    node = Availability((2.0,))
    for start in range(100):
        node.take(start, start + 1, (1.0,))
    assert list(node.changes(-1, math.inf)) == [0, 100]
    node.take(40, 60, (1.0,))
    node.forget(50)
    assert list(node.changes(-math.inf, math.inf)) == [60, 100] and node.free_at(50) == [0.0]
