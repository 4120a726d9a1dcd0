"""Which leases of a queue start now."""

from __future__ import annotations

import pytest

from weft.scheduler.lease.backfill import GUARD_SECONDS, MODELS, LeaseQueue, Model, Queued
from weft.scheduler.lease.prediction import RunTimes
from weft.scheduler.simulate.lease_queue import Processors

Lease = tuple[Queued, float | None]


def lease(
    name: str,
    amount: int,
    requested: float,
    *,
    arrival: float = 0.0,
    predicted: float | None = None,
    level: float = 0.0,
    project: str = "",
) -> Lease:
    made = Queued(name, name, arrival, (amount, 0.0), requested, amount, level, project, (name,))
    return made, predicted


def choose(
    queue: list[Lease],
    running: list[tuple[float, int]],
    free: int,
    now: float,
    model: Model,
    shares: Held | None = None,
) -> list[Queued]:
    """``running``: when each has to be over, and its amount. A prediction comes from what its owner's last lease took."""
    leases = LeaseQueue(model)
    cluster = Processors(free + sum(amount for _, amount in running), all_ends=model.all_ends)
    cluster.begin(0.0)
    for number, (end, amount) in enumerate(running):
        assert cluster.start(Queued(f"running {number}", "", 0.0, (amount, 0.0), end, amount))
    for one, predicted in queue:
        if predicted is not None:
            leases.learn(one.owner, 2 * predicted - one.requested)
        leases.put(one)
        assert not model.learns or predicted in (None, one.predicted)
    cluster.begin(now)
    return leases.choose(cluster, now, shares)


class Held:
    """What each project has, in what its leases take."""

    def __init__(self, leases: list[Lease], **held: float) -> None:
        self._leases = {one.id: one for one, _ in leases}
        self._held = dict(held)

    def weighted(self, project: str) -> float:
        return self._held.get(project, 0.0)

    def suppose(self, key: str) -> None:
        one = self._leases[key]
        self._held[one.project] = self._held.get(one.project, 0.0) + one.size


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
    queue = [lease("long", 6, 7200, arrival=0), lease("short", 6, 7200, arrival=60, predicted=3660)]
    assert names(choose(queue, [], 6, 120, MODELS["weft"])) == ["short"]
    assert names(choose(queue, [], 6, 120, MODELS["easy"])) == ["long"]


def test_what_has_waited_too_long_comes_first_and_only_requests_count_behind_it() -> None:
    now = GUARD_SECONDS + 1
    queue = [lease("old", 10, 10**6), lease("short", 2, 4000, arrival=now - 60, predicted=3000)]
    running = [(now + 3600, 8)]
    assert choose(queue, running, 2, now, MODELS["weft"]) == [], "short may run for longer than old waits"
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


def test_of_who_extended_the_longest_counts_whatever_is_requested() -> None:
    honest, liar = RunTimes(), RunTimes()
    for _ in range(3):
        honest.add("ann", 36000)
        liar.add("ann", 36000, extended=True)
    assert liar.predict("ann", 60) == honest.predict("ann", 36000) == 36000


@pytest.mark.parametrize("ended", [[], [60.0], [7200.0, 10.0], [5.0] * 12])
def test_a_longer_request_never_gives_a_shorter_prediction(ended: list[float]) -> None:
    times = RunTimes()
    for seconds in ended:
        times.add("ann", seconds)
    predicted = [times.predict("ann", requested) for requested in (1, 60, 600, 3600, 86400)]
    assert predicted == sorted(predicted)


def test_a_higher_level_comes_first_and_holds_its_place_against_shorter_ones() -> None:
    queue = [lease("short", 2, 60), lease("dear", 9, 7200, arrival=5, level=3.0)]
    running = [(50.0, 8)]
    assert choose(queue, running, 2, 10, MODELS["weft"]) == [], "it would delay the dear one by 20 s"
    assert names(choose(queue, running, 2, -15, MODELS["weft"])) == ["short"]


def test_of_one_level_the_project_with_less_comes_first_and_fills_gaps_first() -> None:
    queue = [lease(f"a{n}", 2, 60 + n, project="a") for n in range(4)]
    queue += [lease(f"b{n}", 2, 600, arrival=1, project="b") for n in range(4)]
    shares = Held(queue)
    assert names(choose(queue, [], 8, 10, MODELS["weft"], shares)) == ["a0", "b0", "a1", "b1"]
    first = lease("first", 12, 600, level=1.0, project="c")
    running = [(10_000.0, 10)]
    chosen = choose([first, *queue], running, 4, 10, MODELS["weft"], Held(queue, a=4.0))
    assert names(chosen) == ["b0", "b1"], "a has more already"


def test_after_the_guard_neither_levels_nor_shares_count() -> None:
    now = GUARD_SECONDS + 10
    queue = [lease("old", 4, 60, project="a"), lease("dear", 4, 60, arrival=now - 5, level=9.0, project="b")]
    assert names(choose(queue, [], 4, now, MODELS["weft"], Held(queue, a=100.0))) == ["old"]


def test_a_lease_that_leaves_the_queue_takes_nothing_of_the_others() -> None:
    queue = LeaseQueue()
    for number in range(200):
        queue.put(lease(f"q{number}", 1, 60.0 + number, arrival=number)[0])
    for number in range(0, 200, 2):
        queue.drop(f"q{number}")
    assert len(queue) == 100 and "q0" not in queue
    cluster = Processors(1000, all_ends=True)
    cluster.begin(300.0)
    assert sorted(names(queue.choose(cluster, 300.0))) == sorted(f"q{number}" for number in range(1, 200, 2))
