"""A ranking gives, however much has happened since it was made, the node that one would find by looking at all of them."""

from __future__ import annotations

import random
from bisect import insort

import pytest

from weft.contracts.policy import Amounts, Request
from weft.language.parse import read_expression
from weft.language.tree import Preference
from weft.scheduler.engine import cycle
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import ALL_UP_TO, explain
from weft.scheduler.ranking import best_nodes, by_capacity, linear_scores
from weft.scheduler.ranking.linear_scores import SCALE
from weft.scheduler.table.snapshot import NodeFacts, Snapshot

GIB = 2**30
WEIGHTS = (0.4, 0.4, 0.2)
SHAPES: list[Amounts] = [(8000, 16 * GIB, 100 * GIB), (16000, 64 * GIB, 200 * GIB), (8000, 16 * GIB, 0)]

PREFERENCES = (Preference(read_expression("zone=a"), 0.1, 0), Preference(read_expression("zone=b"), 0.03, 0))


def find_best(snapshot: Snapshot, request: Request) -> str | None:
    """By looking at each node, without an array."""
    found: list[tuple[float, str]] = []
    for row, name in enumerate(snapshot.names):
        capacity, used = snapshot.capacity[:, row].tolist(), snapshot.allocated[:, row].tolist()
        if not snapshot.facts[row].online or any(
            u + w > c for u, w, c in zip(used, request.amounts, capacity, strict=True)
        ):
            continue
        left = [c - u for c, u in zip(capacity, used, strict=True)]
        sign = 1.0 if request.strategy == "best_fit" else -1.0
        steep = [sign * w * SCALE * 100.0 / max(c, 1) for w, c in zip(WEIGHTS, capacity, strict=True)]
        full = (0.0 if sign > 0 else SCALE * 100.0) + sum(c * s for c, s in zip(capacity, steep, strict=True))
        base = full - (left[0] * steep[0]) - (left[1] * steep[1]) - (left[2] * steep[2])
        zone = snapshot.facts[row].texts["zone"]
        bonus = sum(p.weight * 100.0 for p in request.preferences if p.expression == read_expression(f"zone={zone}"))
        delta = sum(w * s for w, s in zip(request.amounts, steep, strict=True))
        found.append((-round(base) - round(delta) - round(bonus * SCALE), name))
    return min(found)[1] if found else None


@pytest.mark.parametrize("strategy", ["least_loaded", "best_fit"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shelves_most", [0, 24])
def test_whatever_came_and_went_the_choice_is_the_one_found_by_looking_at_all(
    strategy: str, seed: int, shelves_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(best_nodes, "_CHUNK", 4)
    monkeypatch.setattr(best_nodes, "_MANY", 6)
    monkeypatch.setattr(linear_scores, "MOST", shelves_most)
    monkeypatch.setattr(by_capacity, "_PATIENCE", draw.choice([3, 8, 100]))
    monkeypatch.setattr(by_capacity, "_BLOCK", draw.choice([2, 4, 256]))
    monkeypatch.setattr(cycle, "_LEAST_RANKED", draw.choice([3, 10, 1000]))
    monkeypatch.setattr(cycle, "_ENTRIES_KEPT", 1)
    snapshot = Snapshot()
    engine = Engine(snapshot)
    classes = [
        Request(
            (draw.randrange(1, 30) * 100, draw.randrange(1, 16) * GIB // 2, draw.choice([0, GIB])),
            "q35",
            strategy,
            preferences=preferences,
        )
        for preferences in ((), (), PREFERENCES[:1], PREFERENCES)
    ]
    placed: list[str] = []
    for step in range(400):
        match draw.choices(["place", "leave", "node", "gone"], [60, 25, 12, 3])[0]:
            case "place":
                request = draw.choice(classes)
                expected = find_best(snapshot, request)
                row = engine.place(request, "x", f"a{step}")
                assert (None if row is None else snapshot.names[row]) == expected
                placed += [] if row is None else [f"a{step}"]
            case "leave" if placed:
                snapshot.drop_allocation(placed.pop(draw.randrange(len(placed))))
            case "node":
                name = f"n{draw.randrange(40)}"
                online, zone = draw.random() < 0.9, {"zone": draw.choice("abc")}
                snapshot.put_node(
                    NodeFacts(name, name, draw.choice(SHAPES), online, False, frozenset({"q35"}), texts=zone)
                )
            case "gone":
                snapshot.drop_node(f"n{draw.randrange(40)}")
    assert len(placed) > 20


@pytest.mark.parametrize("seed", range(3))
def test_what_is_told_of_the_best_is_what_a_look_at_all_nodes_would_tell(seed: int) -> None:
    draw = random.Random(seed)
    snapshot = Snapshot()
    engine = Engine(snapshot)
    for number in range(ALL_UP_TO + 26):
        shape = draw.choice(SHAPES[:2])
        snapshot.put_node(NodeFacts(f"u{number}", f"n{number:03}", shape, True, False, frozenset({"q35"})))
    classes = [
        Request((cpu, memory * GIB, GIB), "q35", "least_loaded") for cpu in (500, 1000, 2000) for memory in (1, 2, 4)
    ]
    placed: list[str] = []
    shortly = refused = 0
    for step in range(1000):
        if placed and draw.random() < 0.2:
            snapshot.drop_allocation(placed.pop(draw.randrange(len(placed))))
        if draw.random() < 0.01:
            number = draw.randrange(ALL_UP_TO + 26)
            shape, online = draw.choice(SHAPES[:2]), draw.random() < 0.8
            snapshot.put_node(NodeFacts(f"u{number}", f"n{number:03}", shape, online, False, frozenset({"q35"})))
        request = draw.choice(classes)
        row = engine.choose(request, "x")
        if row is None:
            continue
        told = explain(engine, request, "x", row)
        assert told == explain(Engine(snapshot), request, "x", row)
        shortly += engine.leaders(request, 1) is not None
        refused += bool(told.refused_by)
        placed.append(f"a{step}")
        snapshot.take(placed[-1], row, request.amounts)
    assert shortly > 100 and refused > 50


def test_a_shelf_stays_in_order_whatever_moves_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_capacity, "_BLOCK", 3)
    draw = random.Random(7)
    there = sorted(draw.sample(range(1000), 40))
    shelf = by_capacity.CapacityGroup(list(there))
    for _ in range(2000):
        former, entry = draw.choice([there[-1], draw.choice(there)]), draw.randrange(-500, 1500)
        if entry not in there:
            there.remove(former)
            insort(there, entry)
            shelf.shift(former, entry)
        assert list(reversed(shelf)) == there[::-1]
        assert shelf.head == there[-1]
