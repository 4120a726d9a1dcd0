"""Which leases of the queue start now, and on which of several nodes."""

from __future__ import annotations

import math

import pytest

from weft.contracts.policy import Request
from weft.kinds.fields.lease import LeaseRequest, check_lease
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.gang.leases import LeasedMember
from weft.scheduler.lease.backfill import GUARD_SECONDS, MAX_RETRIES_PER_PASS, MOST_HOPELESS, MOST_TRIED
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.placement.queue_nodes import QueuedLease, choose_starts, read_amounts, read_size
from weft.scheduler.table.snapshot import NodeFacts, Snapshot

NOW = 1_800_000_000.0
GIB = 2**30
HOUR = 3600.0


def make_engine(*cores: int) -> Engine:
    snapshot = Snapshot()
    for number, count in enumerate(cores, 1):
        name = f"n{number}"
        snapshot.put_node(NodeFacts(name, name, (count * 1000, 100 * GIB, 100 * GIB), True, False, frozenset({"q35"})))
    return Engine(snapshot)


def run(engine: Engine, name: str, node: str, cores: int, end: float, *, start: float = NOW - 60.0) -> None:
    engine.snapshot.put_leased(name, CalendarEntry(node, start, end, (cores * 1000, GIB)), 0)


def queue(
    engine: Engine,
    name: str,
    cores: int,
    duration: float,
    *,
    members: int = 1,
    node: str | None = None,
    arrival: float = NOW - 10.0,
    level: float = 0.0,
    took: float | None = None,
    memory: int = GIB,
) -> None:
    """``took``: what each of its owner's last ten leases took."""
    asked = LeaseRequest(duration=duration)
    check_lease(asked)
    request = Request((cores * 1000, memory, 0), "q35", "least_loaded", node=node)
    every = tuple(
        LeasedMember(request, f"{name}-{number}", f"vm/{name}-{number}", asked, None, 0.0) for number in range(members)
    )
    for _ in range(10 if took is not None else 0):
        engine.leases.learn(name, took or 0.0)
    lease = QueuedLease(name, name, arrival, read_amounts(every), duration, read_size(every), level, members=every)
    engine.leases.put(lease)


def starts(engine: Engine) -> dict[str, set[str]]:
    """By lease the nodes that it starts on."""
    before = engine.snapshot.leases.find_taken(engine.snapshot.uids, 0.0, math.inf).tolist()
    found = choose_starts(engine, NOW)
    assert engine.snapshot.leases.find_taken(engine.snapshot.uids, 0.0, math.inf).tolist() == before
    return {lease.id: {engine.snapshot.names[place.row] for place in places.values()} for lease, places in found}


def test_what_starts_in_a_gap_goes_where_nothing_is_held_for_the_first() -> None:
    engine = make_engine(4, 4)
    run(engine, "a", "n1", 3, NOW + HOUR)
    run(engine, "b", "n2", 3, NOW + 3 * HOUR)
    queue(engine, "first", 4, HOUR, level=1.0)
    queue(engine, "long", 1, 2 * HOUR)
    assert starts(engine) == {"long": {"n2"}}
    queue(engine, "longer", 1, 2 * HOUR, node="n1")
    assert starts(engine) == {"long": {"n2"}}, "n1 is held from an hour on"
    queue(engine, "believed", 1, 2 * HOUR, node="n1", took=60.0)
    assert starts(engine) == {"long": {"n2"}, "believed": {"n1"}}


def test_no_prediction_takes_what_was_promised() -> None:
    engine = make_engine(4)
    run(engine, "reservation", "n1", 4, NOW + 3 * HOUR, start=NOW + HOUR)
    queue(engine, "believed", 1, 2 * HOUR, took=60.0)
    queue(engine, "honest", 1, HOUR / 2)
    assert starts(engine) == {"honest": {"n1"}}


def test_behind_one_that_has_waited_for_longer_than_the_guard_only_requests_count() -> None:
    engine = make_engine(4)
    run(engine, "a", "n1", 3, NOW + HOUR)
    queue(engine, "first", 4, HOUR, arrival=NOW - GUARD_SECONDS - 1)
    queue(engine, "believed", 1, 2 * HOUR, took=60.0, level=9.0)
    assert starts(engine) == {}
    queue(engine, "honest", 1, HOUR)
    assert starts(engine) == {"honest": {"n1"}}


def test_what_no_time_is_known_for_keeps_nobody_waiting() -> None:
    engine = make_engine(4, 4)
    engine.snapshot.put_allocation("endless", "n1", (3000, GIB, 0))
    run(engine, "a", "n2", 3, NOW + HOUR)
    queue(engine, "never", 4, HOUR, level=9.0, node="n1")
    queue(engine, "large", 4, HOUR, level=5.0)
    queue(engine, "small", 1, 2 * HOUR)
    assert starts(engine) == {"small": {"n1"}}
    assert [entry.node_uid for entry in engine.leases.held] == ["n2"], "held for the first with a known start"


def test_equal_leases_that_no_time_is_known_for_count_as_one() -> None:
    engine = make_engine(4, 4)
    engine.snapshot.put_allocation("endless", "n1", (3000, GIB, 0))
    run(engine, "a", "n2", 3, NOW + HOUR)
    for number in range(MOST_TRIED + 1):
        queue(engine, f"never{number}", 4, HOUR, level=9.0, node="n1")
    queue(engine, "large", 4, HOUR, level=5.0)
    queue(engine, "small", 1, 2 * HOUR)
    assert starts(engine) == {"small": {"n1"}}
    assert [entry.node_uid for entry in engine.leases.held] == ["n2"], "held for the first with a known start"


def test_a_shorter_one_starts_though_a_longer_one_like_it_never_does() -> None:
    engine = make_engine(4)
    run(engine, "promised", "n1", 4, NOW + 1000 * 24 * HOUR, start=NOW + HOUR)
    queue(engine, "never", 4, 2 * HOUR, level=9.0)
    queue(engine, "short", 4, HOUR / 2)
    assert starts(engine) == {"short": {"n1"}}


@pytest.mark.parametrize(("took", "expected"), [(None, {}), (60.0, {"pair": {"n1", "n2"}})])
def test_a_gang_holds_its_places_together_and_fills_gaps_together(
    took: float | None, expected: dict[str, set[str]]
) -> None:
    engine = make_engine(4, 4)
    run(engine, "a", "n1", 2, NOW + HOUR)
    run(engine, "b", "n2", 2, NOW + 2 * HOUR)
    queue(engine, "first", 4, HOUR, members=2, level=1.0)
    queue(engine, "pair", 2, 3 * HOUR, members=2, took=took)
    assert starts(engine) == expected
    assert [(entry.node_uid, entry.start - NOW) for entry in engine.leases.held] == [
        ("n1", 2 * HOUR),
        ("n2", 2 * HOUR),
    ]


def test_many_that_fit_nowhere_delay_who_comes_first_by_passes_and_never_keep_it_away() -> None:
    engine = make_engine(4, 4)
    engine.snapshot.put_allocation("endless", "n1", (3000, GIB, 0))
    run(engine, "a", "n2", 3, NOW + HOUR)
    for number in range(4 * MOST_TRIED):
        queue(engine, f"never{number}", 4, HOUR, level=9.0, node="n1", memory=GIB + number)
    queue(engine, "large", 4, HOUR, level=5.0)
    queue(engine, "small", 1, 2 * HOUR)
    found, passes = starts(engine), 1
    while engine.leases.unfinished:
        assert found == {}, "nothing fills gaps as long as nobody knows who comes first"
        found, passes = starts(engine), passes + 1
    assert found == {"small": {"n1"}} and passes <= 4 * MOST_TRIED / (MOST_HOPELESS - MAX_RETRIES_PER_PASS) + 1
    assert engine.leases.first is not None and engine.leases.first.id == "large"
    assert starts(engine) == {"small": {"n1"}}, "and the next pass knows it"


def test_what_fitted_nowhere_is_tried_again_in_turn() -> None:
    engine = make_engine(4, 4)
    for name, cores in (("endless", 2), ("rests", 1)):
        engine.snapshot.put_allocation(name, "n1", (cores * 1000, GIB, 0))
    for number in range(4 * MOST_HOPELESS):
        queue(engine, f"never{number}", 4, HOUR, node="n1", memory=GIB + number, level=9.0)
    queue(engine, "last", 3, HOUR, node="n1")
    starts(engine)
    while engine.leases.unfinished:
        starts(engine)
    assert engine.leases.hopeless == 4 * MOST_HOPELESS + 1
    engine.snapshot.drop_allocation("endless")
    found = [starts(engine) for _ in range(4 * MOST_HOPELESS // MAX_RETRIES_PER_PASS + 1)]
    assert {"last": {"n1"}} in found


def test_what_is_larger_than_every_node_is_not_tried() -> None:
    engine = make_engine(4)
    for number in range(2 * MOST_HOPELESS):
        queue(engine, f"huge{number}", 5, HOUR, level=9.0, memory=GIB + number)
    queue(engine, "small", 1, HOUR)
    assert starts(engine) == {"small": {"n1"}} and not engine.leases.unfinished and not engine.leases.hopeless
