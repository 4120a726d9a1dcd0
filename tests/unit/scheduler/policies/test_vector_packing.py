"""Packing by shape: fewer nodes than best_fit for the same load, and no term out of its range."""

from __future__ import annotations

import random

import numpy as np
import pytest

from weft.contracts.policy import Column, Occasion, Request, Table
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.policies import POLICIES
from weft.scheduler.policies.packing import packing_terms
from weft.scheduler.table.snapshot import Gpu, Load, NodeFacts, Snapshot

GIB = 1024**3


class Packing:
    name = "packing"
    reads = "fabric"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        columns = packing_terms(table, request)
        assert sum(column.weight for column in columns) == pytest.approx(1.0)
        assert all(((column.values >= 0) & (column.values <= 100)).all() for column in columns)
        return columns


def engine_of(*capacities: tuple[int, int, int]) -> Engine:
    snapshot = Snapshot()
    for number, capacity in enumerate(capacities):
        snapshot.put_node(NodeFacts(f"u{number}", f"n{number:02}", capacity, True, False, frozenset({"q35"})))
    return Engine(snapshot, policies={**POLICIES, "packing": Packing()})  # type: ignore[dict-item]


def load_of(seed: int) -> list[tuple[int, int, int]]:
    draw = random.Random(seed)
    cpus = draw.choices((1, 2, 4, 8, 16, 24), (15, 25, 25, 20, 10, 5), k=200)
    return [(1000 * cpu, int(cpu * draw.choice((1, 2, 4, 8)) * draw.uniform(0.75, 1.25) * GIB), 0) for cpu in cpus]


def nodes_used(load: list[tuple[int, int, int]], strategy: str) -> int:
    engine = engine_of(*[(64_000, 256 * GIB, 0)] * 60)
    for number, amounts in enumerate(load):
        row = engine.choose(Request(amounts, "q35", strategy), f"vm{number}")
        assert row is not None
        engine.snapshot.put_allocation(f"a{number}", engine.snapshot.uids[row], amounts)
    return int(engine.snapshot.allocated.any(axis=0).sum())


def test_it_needs_fewer_nodes_than_best_fit_and_little_more_than_the_sum() -> None:
    loads = [load_of(seed) for seed in range(1, 7)]
    used = [nodes_used(load, "packing") for load in loads]
    least = [int(np.ceil((np.sum(load, axis=0)[:2] / (64_000, 256 * GIB)).max())) for load in loads]
    assert sum(used) < sum(nodes_used(load, "best_fit") for load in loads)
    assert sum(used) <= 1.06 * sum(least)


def test_a_request_goes_where_the_free_resources_have_its_shape() -> None:
    engine = engine_of((16_000, 64 * GIB, 0), (16_000, 64 * GIB, 0), (16_000, 64 * GIB, 0))
    engine.snapshot.put_allocation("a", "u1", (12_000, 8 * GIB, 0))  # leaves memory
    engine.snapshot.put_allocation("b", "u2", (2_000, 48 * GIB, 0))  # leaves cpu
    assert engine.choose(Request((3_000, 2 * GIB, 0), "q35", "packing"), "x") == 2
    assert engine.choose(Request((1_000, 16 * GIB, 0), "q35", "packing"), "x") == 1


def test_nodes_with_free_gpus_are_left_to_those_that_want_one() -> None:
    engine = engine_of((16_000, 64 * GIB, 0), (16_000, 64 * GIB, 0))
    facts = NodeFacts("u9", "a-gpu", (16_000, 64 * GIB, 0), True, False, frozenset({"q35"}), gpus=(Gpu(),))
    engine.snapshot.put_node(facts)
    engine.snapshot.put_allocation("a", "u9", (4_000, 16 * GIB, 0))
    plain = Request((2_000, 8 * GIB, 0), "q35", "packing")
    row = engine.choose(plain, "x")
    assert row is not None and engine.snapshot.names[row] == "n00"
    engine.snapshot.put_allocation("b", "u9", (1_000, GIB, 0), Load(gpus=((0, 1000),)))
    row = engine.choose(plain, "x")
    assert row is not None and engine.snapshot.names[row] == "a-gpu"


def test_an_unused_node_is_begun_only_when_the_used_ones_have_no_room_or_little() -> None:
    engine = engine_of((16_000, 64 * GIB, 0), (16_000, 64 * GIB, 0))
    engine.snapshot.put_allocation("a", "u1", (4_000, 2 * GIB, 0))
    assert engine.choose(Request((2_000, 4 * GIB, 0), "q35", "packing"), "x") == 1
    engine.snapshot.put_allocation("b", "u1", (10_000, 2 * GIB, 0))
    assert engine.choose(Request((2_000, GIB, 0), "q35", "packing"), "x") == 0
