"""Which leases of a queue start now."""

from __future__ import annotations

import pytest

from weft.scheduler.lease.backfill import GUARD_SECONDS, MODELS, Queued, choose
from weft.scheduler.lease.prediction import RunTimes


def lease(name: str, amount: int, requested: float, *, arrival: float = 0.0, predicted: float | None = None) -> Queued:
    return Queued(name, "ann", arrival, amount, requested, requested if predicted is None else predicted)


def names(chosen: list[Queued]) -> list[str]:
    return [one.id for one in chosen]


def test_what_fits_starts_in_the_order_of_the_queue() -> None:
    queue = [lease("a", 4, 100), lease("b", 6, 100), lease("c", 1, 100)]
    assert names(choose(queue, [], 10, 0, MODELS["easy"])) == ["a", "b"]


@pytest.mark.parametrize("model", ["easy", "easy-sjbf", "weft"])
def test_a_gap_is_filled_only_by_what_leaves_the_first_ones_reservation_alone(model: str) -> None:
    running = [(50.0, 6)]  # 4 of 10 are free until 50, when the first one gets its 8
    queue = [
        lease("first", 8, 1000),
        lease("too long", 3, 60, arrival=1),
        lease("beside it", 2, 60, arrival=2),
        lease("in time", 1, 50, arrival=3),
    ]
    chosen = names(choose(queue, running, 4, 0, MODELS[model]))
    assert "first" not in chosen and "too long" not in chosen
    assert sorted(chosen) == ["beside it", "in time"]


def test_gaps_go_to_the_shortest_first_where_the_model_says_so() -> None:
    queue = [lease("first", 10, 100), lease("long", 3, 40, arrival=1), lease("short", 3, 30, arrival=2)]
    running = [(50.0, 7)]
    assert names(choose(queue, running, 3, 0, MODELS["easy"])) == ["long"]
    assert names(choose(queue, running, 3, 0, MODELS["easy-sjbf"])) == ["short"]


def test_a_lease_predicted_to_be_short_overtakes_a_long_one() -> None:
    queue = [lease("long", 6, 7200, arrival=0), lease("short", 6, 7200, arrival=60, predicted=60)]
    assert names(choose(queue, [], 6, 120, MODELS["weft"])) == ["short"]
    assert names(choose(queue, [], 6, 120, MODELS["easy"])) == ["long"]


def test_what_has_waited_too_long_comes_first_and_only_requests_count_behind_it() -> None:
    now = GUARD_SECONDS + 1
    queue = [lease("old", 10, 10**6), lease("short", 2, 7200, arrival=now - 60, predicted=60)]
    running = [(now + 3600, 8)]
    assert choose(queue, running, 2, now, MODELS["weft"]) == [], "short may run for two hours, and old waits for one"
    assert names(choose(queue, running, 2, GUARD_SECONDS - 1, MODELS["weft"])) == ["short"]


def test_predictions_lie_between_the_request_and_what_the_owners_last_ones_took() -> None:
    times = RunTimes()
    assert times.predict("ann", 3600) == 3600
    times.add("ann", 60)
    assert times.predict("ann", 3600) == (3600 + 60) / 2
    for _ in range(20):
        times.add("ann", 60)
    assert times.predict("ann", 3600) == pytest.approx((3600 + 10 * 60) / 11), "ten are remembered"
    assert times.predict("ann", 30) == 30, "never more than was requested"
    assert times.predict("bob", 3600) == 3600
