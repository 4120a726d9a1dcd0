"""A ranking gives, however much has happened since it was made, the node that one would find by looking at all of them."""

from __future__ import annotations

import random

import pytest

from weft.contracts.policy import Amounts, Request
from weft.scheduler import cycle, ranking, shelves, slopes
from weft.scheduler.cycle import Engine
from weft.scheduler.slopes import SCALE
from weft.scheduler.snapshot import NodeFacts, Snapshot

GIB = 2**30
WEIGHTS = (0.4, 0.4, 0.2)
SHAPES: list[Amounts] = [(8000, 16 * GIB, 100 * GIB), (16000, 64 * GIB, 200 * GIB), (8000, 16 * GIB, 0)]


def find_best(snapshot: Snapshot, request: Request) -> str | None:
    """By looking at each node, without an array."""
    found: list[tuple[float, str]] = []
    for row, name in enumerate(snapshot.names):
        capacity, used = snapshot.capacity[:, row].tolist(), snapshot.allocated[:, row].tolist()
        if not snapshot.facts[row].online or any(
            u + w > c for u, w, c in zip(used, request.amounts, capacity, strict=True)
        ):
            continue
        sign = 1.0 if request.strategy == "best_fit" else -1.0
        steep = [sign * w * SCALE * 100.0 / max(c, 1) for w, c in zip(WEIGHTS, capacity, strict=True)]
        base = (0.0 if sign > 0 else SCALE * 100.0) + sum(u * s for u, s in zip(used, steep, strict=True))
        found.append((-round(base) - round(sum(w * s for w, s in zip(request.amounts, steep, strict=True))), name))
    return min(found)[1] if found else None


@pytest.mark.parametrize("strategy", ["least_loaded", "best_fit"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shelves_most", [0, 24])
def test_whatever_came_and_went_the_choice_is_the_one_found_by_looking_at_all(
    strategy: str, seed: int, shelves_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(ranking, "_CHUNK", 4)
    monkeypatch.setattr(ranking, "_MANY", 6)
    monkeypatch.setattr(slopes, "MOST", shelves_most)
    monkeypatch.setattr(shelves, "_PATIENCE", draw.choice([3, 8, 100]))
    monkeypatch.setattr(cycle, "_LEAST_RANKED", draw.choice([3, 10, 1000]))
    monkeypatch.setattr(cycle, "_ENTRIES_KEPT", 1)
    snapshot = Snapshot()
    engine = Engine(snapshot)
    classes = [
        Request((draw.randrange(1, 30) * 100, draw.randrange(1, 16) * GIB // 2, draw.choice([0, GIB])), "q35", strategy)
        for _ in range(3)
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
                online = draw.random() < 0.9
                snapshot.put_node(NodeFacts(name, name, draw.choice(SHAPES), online, False, frozenset({"q35"})))
            case "gone":
                snapshot.drop_node(f"n{draw.randrange(40)}")
    assert len(placed) > 20
