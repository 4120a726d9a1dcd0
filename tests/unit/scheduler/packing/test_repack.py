"""Everything on fewer nodes: it holds what each workload asks for, never needs more nodes, and reaches what can be."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.contracts.policy import GpuAsk, Request
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.packing import solver
from weft.scheduler.packing.repack import Placed, Repacking, repack
from weft.scheduler.table.snapshot import Gpu, NodeFacts, Snapshot

GIB = 1024**3


def node(number: int, cpu: int, memory: int, **more: object) -> NodeFacts:
    return NodeFacts(
        uid=f"u{number}",
        name=f"n{number:02}",
        capacity=(cpu * 1000, memory * GIB, 0),
        online=True,
        machines=frozenset({"q35"}),
        **{"cordoned": False, **more},  # type: ignore[arg-type]
    )


def ask(cpu: int, memory: int, strategy: str = "best_fit", **more: object) -> Request:
    return Request((cpu * 1000, memory * GIB, 0), "q35", strategy, **more)  # type: ignore[arg-type]


def engine_of(nodes: list[NodeFacts]) -> Engine:
    snapshot = Snapshot()
    for each in nodes:
        snapshot.put_node(each)
    return Engine(snapshot)


def place(engine: Engine, requests: list[Request], *, rows: list[int] | None = None) -> list[Placed]:
    placed = []
    for number, request in enumerate(requests):
        row = engine.choose(request, f"vm{number}") if rows is None else rows[number]
        if row is None:
            continue
        engine.snapshot.put_allocation(f"a{number}", engine.snapshot.uids[row], request.amounts)
        placed.append(Placed(request, row))
    return placed


def check(engine: Engine, placed: list[Placed], found: Repacking) -> None:
    """Laid out anew, one by one, every workload passes all filters where it is said to go."""
    fresh = engine_of(list(engine.snapshot.facts))
    for number, (each, row) in enumerate(zip(placed, found.rows, strict=True)):
        uid = engine.snapshot.uids[row]
        assert row == each.row or fresh.may_fit(each.request, [uid])
        fresh.snapshot.put_allocation(f"a{number}", uid, each.request.amounts)
    assert (fresh.snapshot.allocated <= fresh.snapshot.capacity).all()
    assert found.nodes_used == len(set(found.rows)) <= len({each.row for each in placed})
    assert found.least <= found.nodes_used


requests = st.builds(
    ask,
    st.integers(1, 6),
    st.integers(1, 12),
    st.sampled_from(["best_fit", "least_loaded"]),
    node=st.sampled_from([None, None, None, "n01"]),
)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.builds(node, st.just(0), st.integers(4, 16), st.integers(8, 32)), min_size=1, max_size=4), st.data())
def test_what_is_packed_anew_fits_and_never_takes_more_nodes(nodes: list[NodeFacts], data: st.DataObject) -> None:
    engine = engine_of([node(n, f.capacity[0] // 1000, f.capacity[1] // GIB) for n, f in enumerate(nodes)])
    placed = place(engine, data.draw(st.lists(requests, min_size=1, max_size=8)))
    found = repack(engine, placed, solver_seconds=0)
    check(engine, placed, found)
    if found.proven and len(placed) <= 6:
        assert found.nodes_used == fewest(engine, placed)


def fewest(engine: Engine, placed: list[Placed]) -> int:
    """By trying everything."""
    best = len(engine.snapshot)
    capacity = engine.snapshot.capacity
    for rows in itertools.product(range(len(engine.snapshot)), repeat=len(placed)):
        load = np.zeros_like(capacity)
        for row, each in zip(rows, placed, strict=True):
            load[:, row] += each.request.amounts
        named = all(e.request.node in (None, engine.snapshot.names[r]) for e, r in zip(placed, rows, strict=True))
        if named and (load <= capacity).all():
            best = min(best, len(set(rows)))
    return best


def test_two_hundred_that_lie_spread_come_to_the_sum_of_what_they_want() -> None:
    draw = random.Random(3)
    cpus = draw.choices((1, 2, 4, 8, 16, 24), (15, 25, 25, 20, 10, 5), k=200)
    engine = engine_of([node(n, 64, 256) for n in range(60)])
    asked = [
        ask(cpu, round(cpu * draw.choice((1, 2, 4, 8)) * draw.uniform(0.75, 1.25)), "least_loaded") for cpu in cpus
    ]
    placed = place(engine, asked)
    found = repack(engine, placed, solver_seconds=0)
    check(engine, placed, found)
    assert len({each.row for each in placed}) == 60
    assert found.proven and found.nodes_used == found.least <= 22


def test_what_has_devices_or_looks_at_others_stays_and_what_is_on_its_node_costs_nothing() -> None:
    nodes = [node(0, 8, 32), node(1, 8, 32, gpus=(Gpu("T4", 16 * GIB),)), node(2, 8, 32), node(3, 8, 32, cordoned=True)]
    engine = engine_of(nodes)
    gpu = ask(1, 1, gpus=GpuAsk(1))
    placed = place(engine, [gpu, ask(2, 2), ask(2, 2), ask(2, 2)], rows=[1, 0, 2, 3])
    assert repack(engine, placed, solver_seconds=0).rows == [1, 1, 1, 1]


def test_a_node_that_was_given_more_than_it_has_is_left_as_it_is() -> None:
    engine = engine_of([node(0, 4, 8), node(1, 4, 8)])
    placed = place(engine, [ask(3, 2), ask(3, 2), ask(1, 1)], rows=[0, 0, 1])
    found = repack(engine, placed, solver_seconds=0)
    assert found.rows == [0, 0, 1] and not found.proven


@pytest.mark.skipif(not solver.is_installed(), reason="the extra solver is not installed")
def test_where_the_sum_is_not_reached_the_solver_proves_that_it_cannot_be() -> None:
    engine = engine_of([node(n, 10, 100) for n in range(6)])
    placed = place(engine, [ask(6, 1, "least_loaded")] * 4 + [ask(1, 1, "least_loaded")] * 3)
    by_search = repack(engine, placed, solver_seconds=0)
    assert (by_search.nodes_used, by_search.least, by_search.proven) == (4, 3, False)
    solved = repack(engine, placed)
    assert (solved.nodes_used, solved.least, solved.proven) == (4, 4, True)
