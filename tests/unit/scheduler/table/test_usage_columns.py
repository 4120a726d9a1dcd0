"""By what is used: strategies go by what nodes measure, and filters all the same by what was asked for."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from tests.unit.scheduler.policies.test_policies import GIB, ask, make, node
from tests.unit.scheduler.policies.test_policies import put as put_it

from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import explain
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.table.usage import Measured

LITTLE = Measured((100, GIB // 4, 0))
MUCH = Measured((7000, GIB // 4, 0))


def put(snapshot: Snapshot, name: str, cpu: float, memory: float) -> str:
    """The name of what was put there."""
    put_it(snapshot, name, cpu, memory)
    return next(reversed(snapshot._allocations))


def choose(engine: Engine, strategy: str = "least_loaded", basis: str = "used", **request: float) -> str | None:
    row = engine.choose(ask(strategy, basis=basis, **request), "new")
    return None if row is None else engine.snapshot.names[row]


@pytest.mark.parametrize("strategy", ["least_loaded", "resource_balance", "cost", "least_loaded,resource_balance"])
def test_a_node_given_away_whose_guests_idle_is_emptier_than_one_that_works(strategy: str) -> None:
    snapshot = make(node("idle"), node("works"))
    given, asked = put(snapshot, "idle", 4, 1), put(snapshot, "works", 1, 1)
    assert choose(Engine(snapshot), strategy, "allocation") == "works"
    snapshot.put_use("uid-idle", Measured(LITTLE.amounts, frozenset({given})))
    snapshot.put_use("uid-works", Measured(MUCH.amounts, frozenset({asked})))
    assert choose(Engine(snapshot), strategy) == "idle"
    assert choose(Engine(snapshot), strategy, "allocation") == "works"


def test_best_fit_by_what_is_used_fills_the_node_that_works() -> None:
    snapshot = make(node("idle"), node("works"))
    snapshot.put_use("uid-idle", LITTLE)
    snapshot.put_use("uid-works", MUCH)
    assert choose(Engine(snapshot), "best_fit") == "works"


def test_however_idle_a_node_is_nothing_is_given_away_beyond_its_ratio() -> None:
    snapshot = make(node("idle", cpu=8, overcommit={"cpu": 2.0}))
    engine = Engine(snapshot)
    snapshot.put_use("uid-idle", Measured((0, 0, 0)))
    placed = 0
    while engine.place(ask("least_loaded", cpu=3, memory=0, basis="used"), f"vm{placed}", f"a{placed}") is not None:
        snapshot.put_use("uid-idle", Measured((0, 0, 0), frozenset(f"a{n}" for n in range(placed + 1))))
        placed += 1
    assert placed == 5  # of 16 cores that may be given
    assert snapshot.used[:, 0].tolist() == [0, 0, 0]


def test_those_just_placed_count_with_what_they_asked_for_until_they_are_measured() -> None:
    snapshot = make(*(node(f"n{number}") for number in range(4)))
    for number in range(4):
        snapshot.put_use(f"uid-n{number}", Measured((number * 500, 0, 0)))
    engine = Engine(snapshot)
    rows = [engine.place(ask("least_loaded", cpu=1, memory=0, basis="used"), f"vm{n}", f"a{n}") for n in range(16)]
    assert max(Counter(rows).values()) <= 5, "they piled up where it was idle a moment ago"


def test_with_a_ratio_what_is_used_is_as_full_as_without() -> None:
    snapshot = make(node("plain", cpu=8), node("twice", cpu=8, overcommit={"cpu": 2.0}))
    for name in ("plain", "twice"):
        snapshot.put_use(f"uid-{name}", Measured((6000, 0, 0)))
    shares = (snapshot.used[0] / snapshot.capacity[0]).tolist()
    assert shares == [0.75, 0.75]


def test_a_node_that_says_nothing_counts_with_what_is_allocated_and_that_is_told() -> None:
    snapshot = make(node("measured"), node("silent"), msgspec.structs.replace(node("down"), online=False))
    put(snapshot, "silent", 2, 2)
    snapshot.put_use("uid-measured", MUCH)
    engine = Engine(snapshot)
    request = ask("least_loaded", basis="used")
    told = explain(engine, request, "new", engine.choose(request, "new"))
    assert told.verdicts[0].node == "silent"
    assert told.warnings == ["usage not measured, so what is allocated counts: silent"]
    row = snapshot.names.index("silent")
    assert snapshot.used[:, row].tolist() == snapshot.allocated[:, row].tolist() != [0, 0, 0]
    assert explain(engine, ask("least_loaded"), "new", None).warnings == []


def test_what_was_measured_is_known_again_when_its_node_comes_back_and_rows_have_moved() -> None:
    snapshot = make(node("b"), node("c"))
    name = put(snapshot, "c", 2, 2)
    snapshot.put_use("uid-c", Measured((500, 0, 0), frozenset({name})))
    snapshot.put_node(node("a"))
    snapshot.settle()
    assert snapshot.used[0].tolist() == [0, 0, 500]
    snapshot.drop_node("uid-b")
    assert snapshot.used[0].sum() == 500 and snapshot.measured.sum() == 1
    snapshot.drop_node("uid-c")
    assert snapshot.used[0].tolist() == [0]
    snapshot.put_node(node("c"))
    assert snapshot.used[0].tolist() == [0, 500]
    snapshot.put_use("uid-c", None)
    assert snapshot.used[0].tolist() == [0, 2000]
