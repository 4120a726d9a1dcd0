"""Which guests leave a node ahead of a shortage, and where to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.insight.course import CALM, SHORT
from weft.scheduler.rebalance.ahead import Shortfall, find_groups, plan_ahead
from weft.scheduler.rebalance.model import Flags


def short(use: list[float], high: list[float], **more: object) -> Shortfall:
    """Nodes of 10 cores whose use is the same in all four hours; the first is short, and all guests are there."""
    n, g = len(high), len(use)
    fields: dict[str, object] = {
        "node": 0,
        "first": 1,
        "last": 3,
        "full": np.full(n, 10.0),
        "high": np.repeat(np.array(high)[:, None], 4, axis=1),
        "target": np.ones(n, dtype=np.bool_),
        "at": np.zeros(g, dtype=np.int64),
        "use": np.repeat(np.array(use)[:, None], 4, axis=1),
        "size": np.arange(1.0, g + 1.0),
        "mobile": np.ones(g, dtype=np.bool_),
        **more,
    }
    return Shortfall(**fields)  # type: ignore[arg-type]


def accept(guest: int, target: int) -> Flags | None:
    return None


def test_the_smallest_guest_that_is_enough_goes_to_the_emptiest_node() -> None:
    found, lacking = plan_ahead(short([0.5, 2.0, 3.0], [10.5, 4.0, 2.0]), accept)
    assert [(one.guest, one.target, one.first) for one in found] == [(1, 2, 1)] and lacking == 0.0


def test_several_go_if_none_is_enough_and_what_lacks_is_told() -> None:
    found, lacking = plan_ahead(short([1.0, 1.0, 1.0], [11.0, 6.5, 6.5]), accept)
    assert [one.guest for one in found] == [0, 1] and {one.target for one in found} == {1, 2} and lacking == 0.0
    found, lacking = plan_ahead(short([1.0], [11.0, 2.0]), accept)
    assert len(found) == 1 and lacking == pytest.approx(1.0)


def test_what_is_refused_unknown_or_would_be_short_next_is_no_target() -> None:
    assert plan_ahead(short([2.0], [10.5, 7.0]), accept) == ([], pytest.approx(1.5))
    assert plan_ahead(short([2.0], [10.5, np.nan]), accept)[0] == []
    asked = []

    def refuse(guest: int, target: int) -> Flags | None:
        asked.append(target)
        return np.array([False, True, True]) if target == 2 else None

    assert [one.target for one in plan_ahead(short([2.0], [10.5, 2.0, 1.0]), refuse)[0]] == [1] and asked == [2, 1]
    assert plan_ahead(short([2.0], [10.5, 1.0], mobile=np.zeros(1, dtype=np.bool_)), accept)[0] == []


def test_guests_that_talk_go_together_where_both_fit() -> None:
    found, _ = plan_ahead(short([2.0, 1.0, 1.0], [10.5, 4.0], groups=[[0, 2]]), accept)
    assert [(one.guest, one.first) for one in found] == [(0, 0), (2, 0)]
    found, _ = plan_ahead(short([2.0, 1.0, 9.0], [10.5, 4.0], groups=[[0, 2]]), accept)
    assert [one.guest for one in found] == [0]


def test_groups_are_of_those_that_talk_most_and_not_too_large() -> None:
    assert find_groups({(0, 1): 100.0, (1, 2): 1.0, (3, 4): 5.0}) == [[0, 1, 2], [3, 4]]
    assert find_groups({(0, 1): 100.0, (1, 2): 100.0, (2, 3): 1.0, (3, 4): 50.0}) == [[0, 1, 2], [3, 4]]
    assert max(map(len, find_groups({(n, n + 1): 1.0 for n in range(30)}))) <= 8
    assert find_groups({}) == []


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(st.floats(0.0, 6.0), max_size=8),
    st.lists(st.floats(0.0, 12.0), min_size=2, max_size=5),
    st.integers(0, 2**31),
)
def test_no_target_is_short_and_nobody_goes_twice(use: list[float], high: list[float], seed: int) -> None:
    problem = short(use, high)
    refuses = np.random.default_rng(seed).random((len(use), len(high))) < 0.3

    def check(guest: int, target: int) -> Flags | None:
        return ~refuses[guest] if refuses[guest][target] else None

    found, lacking = plan_ahead(problem, check)
    after = np.array(high)
    for one in found:
        assert not refuses[one.guest][one.target] and one.target != 0
        after[0] -= use[one.guest]
        after[one.target] += use[one.guest]
        assert after[one.target] <= CALM * 10.0 + 1e-9
    assert len({one.guest for one in found}) == len(found)
    assert lacking == pytest.approx(max(0.0, after[0] - SHORT * 10.0), abs=1e-9)
    if high[0] <= SHORT * 10.0:
        assert found == []
