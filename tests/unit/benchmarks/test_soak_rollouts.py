"""What the soak of rollouts concludes from requests."""

from __future__ import annotations

from benchmarks.soak.rollouts import MANNERS, STRATEGIES, count_least, draw_round
from tests.cluster.load import Request


def make_requests(*said: str, status: str = "200") -> list[Request]:
    return [Request(float(at), 0.01, "/", status, one) for at, one in enumerate(said)]


def test_the_fewest_instances_that_answer_at_one_time_are_found() -> None:
    alike = make_requests(*["v1/a", "v1/b", "v1/c"] * 10)
    assert count_least(alike, 6) == 3
    assert count_least(make_requests(*["v1/a", "v1/b", "v1/c"] * 4, *["v1/a", "v1/b"] * 4), 6) == 2
    assert count_least(alike[:5], 6) is None


def test_an_error_is_no_answer_of_an_instance() -> None:
    assert count_least([*make_requests("v1/a", "v1/a", "v1/a"), *make_requests("v1/b", status="500")], 3) == 1


def test_a_dozen_rounds_have_each_strategy_and_good_and_bad_versions() -> None:
    rounds = [draw_round(1, number) for number in range(12)]
    assert {one.strategy for one in rounds} == set(STRATEGIES)
    assert {True, False} == {one.is_good for one in rounds}
    assert {one.manner for one in rounds} <= set(MANNERS)
    assert len({one.command for one in rounds}) == 12
