"""The steps that even out load and bring talkers together."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.scheduler.rebalance import exact, lazy
from weft.scheduler.rebalance.model import Budget, Problem, State, find_score
from weft.scheduler.rebalance.objective import FULLEST, Guest, RebalanceNode, make_problem
from weft.scheduler.rebalance.plan import conclude, rebalance

GIB = 1 << 30
NODE = (16_000, 64 * GIB, 1000 * GIB)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    n = draw(st.integers(1, 5))
    machines = [
        RebalanceNode(f"n{i}", NODE, NODE, counts=draw(st.booleans()) or i == 0, takes=draw(st.booleans()))
        for i in range(n)
    ]
    guests = []
    for number in range(draw(st.integers(0, 12))):
        cores = draw(st.sampled_from([1, 1, 2, 4]))
        amounts = (cores * 1000, cores * 4 * GIB, 10 * GIB)
        used = (amounts[0] * draw(st.sampled_from([0.1, 0.5, 1.0])), amounts[1] * 0.5)
        size = draw(st.sampled_from([0.0, float(amounts[1])]))
        guests.append(
            Guest(f"g{number}", draw(st.integers(0, n - 1)), amounts, used, size, draw(st.integers(0, 3)) > 0)
        )
    pairs = {}
    if guests and draw(st.booleans()):
        for _ in range(draw(st.integers(0, 8))):
            a, b = sorted(draw(st.tuples(*[st.integers(0, len(guests) - 1)] * 2)))
            pairs[a, b] = draw(st.floats(0, 100))
    trips = np.full((n, n), 0.5)
    np.fill_diagonal(trips, 0.0)
    return make_problem(machines, guests, pairs, trips)


@settings(max_examples=examples(300), deadline=None)
@given(problems(), st.integers(0, 8), st.sampled_from(["exact", "lazy", "either"]))
def test_every_move_fits_and_the_score_is_the_one_that_is_computed_from_the_beginning(
    problem: Problem, most: int, way: str
) -> None:
    turns = iter(range(3))
    budget, has_time = Budget(steps=most, size=40.0 * GIB), lambda: next(turns, None) is not None
    if way == "exact" and problem.round_trips is None and problem.mobile.any():
        found = conclude(problem, exact.find_steps(problem, budget, has_time))
    elif way == "lazy" and problem.mobile.any():
        found = conclude(problem, lazy.find_steps(problem, budget))
    else:
        found = rebalance(problem, budget, has_time)
    state = State(problem)
    for step in found.steps:
        assert problem.mobile[step.guest] and problem.target[step.target]
        assert state.at[step.guest] == step.source != step.target
        assert (state.free[:, step.target] >= problem.need[step.guest]).all()
        state.apply(step.guest, step.target)
        assert state.score() == pytest.approx(find_score(problem, state.at), abs=1e-6)
        assert step.score == pytest.approx(state.score(), abs=1e-6)
    assert len({step.guest for step in found.steps}) == len(found.steps) <= most
    assert sum(problem.size[step.guest] for step in found.steps) <= budget.size
    assert found.score_before == pytest.approx(find_score(problem, problem.at))
    assert found.score_after == pytest.approx(find_score(problem, state.at))
    paid = sum(problem.price[step.guest] for step in found.steps)
    assert found.score_after <= found.score_before - paid + 1e-6


@settings(max_examples=examples(100), deadline=None)
@given(problems())
def test_the_first_of_the_exact_steps_is_the_best_of_all(problem: Problem) -> None:
    if problem.round_trips is not None or not problem.mobile.any():
        return
    best, before = 0.0, find_score(problem, problem.at)
    for guest, target in product(range(len(problem.at)), range(len(problem.target))):
        fits = (State(problem).free[:, target] >= problem.need[guest]).all()
        if problem.mobile[guest] and problem.target[target] and fits and target != problem.at[guest]:
            at = problem.at.copy()
            at[guest] = target
            best = max(best, before - find_score(problem, at) - problem.price[guest])
    found = exact.find_steps(problem, Budget(steps=1), lambda: False)
    gain = before - found[0].score - problem.price[found[0].guest] if found else 0.0
    assert gain == pytest.approx(best, abs=1e-6)


def crowd(count: int, nodes: int, **more: bool) -> Problem:
    """``count`` guests of 2 cores, all on the first of ``nodes``."""
    machines = [RebalanceNode(f"n{i}", NODE, NODE) for i in range(nodes)]
    guests = [Guest(f"g{i}", 0, (2000, 8 * GIB, 0), (2000.0, 8.0 * GIB), 8.0 * GIB, **more) for i in range(count)]
    return make_problem(machines, guests, {}, None)


def test_a_crowd_on_one_node_spreads_until_a_move_gains_less_than_its_price() -> None:
    problem = crowd(6, 3)
    found = rebalance(problem, Budget(steps=100), lambda: False)
    assert sorted((step.source, step.target) for step in found.steps) == [(0, 1), (0, 1), (0, 2), (0, 2)]
    assert found.score_after == pytest.approx(0.0, abs=1e-9)


def test_without_steps_bytes_or_mobile_guests_nothing_steps() -> None:
    for problem, budget in (
        (crowd(6, 3), Budget(steps=0)),
        (crowd(6, 3), Budget(steps=9, size=1.0)),
        (crowd(6, 3, mobile=False), Budget(steps=9)),
        (crowd(6, 1), Budget(steps=9)),
        (crowd(0, 3), Budget(steps=9)),
    ):
        found = rebalance(problem, budget, lambda: False)
        assert found.steps == [] and found.score_after == found.score_before


def test_guests_that_talk_come_together_and_no_node_is_filled_beyond_its_bound() -> None:
    machines = [RebalanceNode(f"n{i}", NODE, NODE) for i in range(4)]
    guests = [Guest(f"g{i}", i % 4, (2000, 8 * GIB, 0), (2000.0, 8.0 * GIB), 0.0) for i in range(12)]
    pairs = {
        pair: 1e6 for first in range(0, 12, 4) for pair in permutations(range(first, first + 4), 2) if pair[0] < pair[1]
    }
    trips = 0.5 * (1 - np.eye(4))
    problem = make_problem(machines, guests, pairs, trips)
    found = rebalance(problem, Budget(steps=50), lambda: False)
    at = problem.at.copy()
    for step in found.steps:
        at[step.guest] = step.target
    assert [len(set(at[first : first + 4])) for first in range(0, 12, 4)] == [1, 1, 1]
    assert max(np.bincount(at)) * 2 <= FULLEST * 16
    assert found.score_after < found.score_before


def test_what_the_check_refuses_is_not_planned_and_another_node_is_found() -> None:
    problem, asked = crowd(6, 3), list[int]()

    def check(guest: int, target: int) -> np.ndarray | None:  # type: ignore[type-arg]
        asked.append(target)
        return np.array([True, False, True]) if target == 1 else None

    steps = lazy.find_steps(problem, Budget(steps=9), check)
    assert {step.target for step in steps} == {2} and 1 in asked


def test_of_too_many_guests_those_on_the_fullest_nodes_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "MOST_WEIGHED", 12)
    problem = crowd(6, 3)
    assert len(lazy.choose_guests(problem, State(problem))) <= 4
    assert lazy.find_steps(problem, Budget(steps=9))


def test_steps_into_capacity_that_others_leave_come_after_these() -> None:
    machines = [RebalanceNode(f"n{i}", NODE, NODE) for i in range(2)]
    guests = [Guest(f"g{i}", i, (9000, GIB, 0), (1000.0, 1.0 * GIB), 0.0) for i in range(2)]
    problem = make_problem(machines, guests, {}, None)
    first, second = exact.MigrationStep(0, 0, 1, 0.0), exact.MigrationStep(1, 1, 0, 0.0)
    assert exact.order_steps(problem, [first, second]) is None  # each waits for the other
    roomy = make_problem([machines[0], RebalanceNode("n1", (64_000, *NODE[1:]), (64_000, *NODE[1:]))], guests, {}, None)
    ordered = exact.order_steps(roomy, [second, first])
    assert ordered is not None and [step.guest for step in ordered] == [0, 1]
