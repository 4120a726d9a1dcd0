"""fragmentation and fgd: policies that go by what is expected next."""

from __future__ import annotations

import random

import numpy as np
import pytest

from weft.contracts.policy import GpuAsk, Outlook, Request, Sort
from weft.language.parse import read_expression
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.demand import Ask, Demand, make_outlook
from weft.scheduler.policies.fgd import find_fragmented
from weft.scheduler.policies.residue import find_residue
from weft.scheduler.table.facts import Gpu, Load, NodeFacts
from weft.scheduler.table.snapshot import Snapshot, asks_of

GIB = 1024**3
ONE, EIGHT, SHARE = GpuAsk(1), GpuAsk(8), GpuAsk(1, 600)


def node(name: str, cpu: int, memory: int, gpus: int = 0, model: str = "A") -> NodeFacts:
    machines = frozenset({"q35"})
    capacity = (cpu * 1000, memory * GIB, 1 << 50)
    return NodeFacts(name, name, capacity, True, False, machines, gpus=(Gpu(model),) * gpus)


def ask(strategy: str, cpu: float, memory: int, gpus: GpuAsk | None = None) -> Request:
    return Request((round(cpu * 1000), memory * GIB, 0), "q35", strategy, gpus=gpus)


def kind(cpu: float, memory: int, gpus: GpuAsk | None = None) -> Ask:
    return (round(cpu * 1000), memory * GIB, 0), gpus


def choose(nodes: list[NodeFacts], expected: list[Ask], request: Request, used: dict[str, Load] | None = None) -> str:
    snapshot = Snapshot()
    for facts in nodes:
        snapshot.put_node(facts)
    for name, load in (used or {}).items():
        snapshot.put_allocation(f"on {name}", name, (1000 * len(load.gpus), GIB, 0), load)
    row = Engine(snapshot, demand=Demand(lambda: expected)).choose(request, "x")
    assert row is not None
    return snapshot.names[row]


def test_cpu_is_not_spent_where_gpus_will_need_it() -> None:
    nodes = [node("a-tight", 16, 64, 2), node("b-ample", 64, 256, 2)]
    assert choose(nodes, [kind(8, 16, ONE)], ask("fragmentation", 8, 16)) == "b-ample"
    assert choose([*nodes, node("c-bare", 16, 64)], [kind(30, 16, ONE)], ask("fragmentation", 8, 16)) == "c-bare"


def of_type(name: str, cpu: int, type_: str) -> NodeFacts:
    return NodeFacts(name, name, (cpu * 1000, 4 * cpu * GIB, 0), True, False, frozenset({"q35"}), texts={"type": type_})


def test_nodes_that_others_must_have_are_kept_for_them() -> None:
    snapshot = Snapshot()
    for facts in (of_type("a-edge", 8, "edge"), of_type("b-cloud", 64, "cloud"), of_type("c-cloud", 64, "cloud")):
        snapshot.put_node(facts)
    engine = Engine(snapshot, demand=Demand(lambda: asks_of(snapshot), learns=True))
    edge = Request((1000, GIB, 0), "q35", "fragmentation", constraint=read_expression("type=edge"))
    plain = ask("fragmentation", 1, 2)
    placed = []
    for number in range(36):
        row = engine.place(edge if number % 6 == 0 else plain, f"w{number}", f"a{number}")
        assert row is not None
        placed.append(snapshot.names[row])
    assert placed[::6] == ["a-edge"] * 6
    later = [name for number, name in enumerate(placed) if number % 6 and number > 6]
    assert "a-edge" not in later, "once somebody has asked for it"


def test_who_must_have_it_isn_t_kept_off_and_others_get_it_when_nothing_else_is_left() -> None:
    snapshot = Snapshot()
    for facts in (of_type("edge", 8, "edge"), of_type("cloud", 2, "cloud")):
        snapshot.put_node(facts)
    engine = Engine(snapshot, demand=Demand(lambda: asks_of(snapshot), learns=True))
    edge = Request((1000, GIB, 0), "q35", "fragmentation", constraint=read_expression("type=edge"))
    rows = [
        engine.place(edge, "e", "e"),
        *(engine.place(ask("fragmentation", 1, 2), f"p{n}", f"p{n}") for n in range(3)),
    ]
    assert [None if row is None else snapshot.names[row] for row in rows] == ["edge", "cloud", "cloud", "edge"]


def test_whole_nodes_stay_whole_for_those_who_need_one() -> None:
    nodes = [node("a-whole", 96, 384, 8), node("b-begun", 96, 384, 8)]
    begun = {"b-begun": Load(gpus=((0, 1000),))}
    expected = [kind(8, 16, ONE)] * 20 + [kind(64, 128, EIGHT)]
    assert choose(nodes, expected, ask("fragmentation", 8, 16, ONE), begun) == "b-begun"


def test_a_model_that_some_must_have_is_left_to_them() -> None:
    nodes = [node("a-rare", 64, 256, 4, "T4"), node("b-common", 64, 256, 4, "A")]
    expected = [kind(8, 16, ONE), kind(8, 16, ONE), kind(8, 16, GpuAsk(1, models=("T4",)))]
    assert choose(nodes, expected, ask("fragmentation", 8, 16, ONE)) == "b-common"


@pytest.mark.parametrize("strategy", ["fragmentation", "fgd"])
def test_the_first_to_want_a_gpu_comes_where_only_others_were_expected(strategy: str) -> None:
    nodes = [node("a", 64, 256, 2), node("b", 64, 256, 2)]
    used = {"b": Load(gpus=((0, 500),))}
    assert choose(nodes, [kind(8, 16)], ask(strategy, 8, 16, SHARE), used) == "b"


def test_a_share_goes_where_the_rest_is_of_use() -> None:
    nodes = [node("a", 64, 256, 1), node("b", 64, 256, 1)]
    used = {"b": Load(gpus=((0, 400),))}
    for strategy in ("fragmentation", "fgd"):
        assert choose(nodes, [kind(1, 1, SHARE), kind(1, 1, ONE)], ask(strategy, 1, 1, SHARE), used) == "b"


def test_with_nothing_known_more_of_the_same_is_expected() -> None:
    nodes = [node("a", 64, 256, 2), node("b", 64, 256, 2)]
    used = {"b": Load(gpus=((0, 500),))}
    for strategy in ("fragmentation", "fgd"):
        assert choose(nodes, [], ask(strategy, 1, 1, GpuAsk(1, 500)), used) == "b"


def slow_fragmentation(free: list[int], cpu: int, model: str, typical: list[tuple[int, GpuAsk | None, float]]) -> float:
    """The paper's F of one node, word by word."""
    total = 0.0
    for wanted, gpus, often in typical:
        fitting = [] if gpus is None else [f for f in free if f >= gpus.share]
        able = gpus is not None and len(fitting) >= gpus.count and cpu >= wanted
        able = able and (gpus is None or not gpus.models or model in gpus.models)
        total += often * (sum(free) - (sum(fitting) if able else 0))
    return total


@pytest.mark.parametrize("seed", range(5))
def test_fragmentation_is_counted_as_published(seed: int) -> None:
    draw = random.Random(seed)
    snapshot = Snapshot()
    for number in range(30):
        model = draw.choice(["A", "B", ""])
        snapshot.put_node(node(f"n{number}", draw.choice([8, 16]), 64, draw.randrange(5), model))
    for number, facts in enumerate(list(snapshot.facts)):
        gpus = tuple((d, draw.choice([1000, 600, 250])) for d in range(len(facts.gpus)) if draw.random() < 0.5)
        snapshot.put_allocation(f"x{number}", facts.uid, (draw.randrange(8000), GIB, 0), Load(gpus=gpus))
    typical = [
        (draw.randrange(1000, 9000), draw.choice([None, ONE, SHARE, GpuAsk(2), GpuAsk(1, 300, models=("A",))]), 0.25)
        for _ in range(4)
    ]
    outlook = Outlook(tuple(Sort((cpu, 0, 0), gpus, often) for cpu, gpus, often in typical))
    found = find_fragmented(snapshot, find_residue(snapshot), outlook)
    for row, facts in enumerate(snapshot.facts):
        free = [int(f) for f in snapshot.gpu_free[row] if f >= 0]
        cpu = int(snapshot.capacity[0, row] - snapshot.allocated[0, row])
        model = facts.gpus[0].model if facts.gpus else ""
        assert found[row] == pytest.approx(slow_fragmentation(free, cpu, model, typical))


@pytest.mark.parametrize("strategy", ["fragmentation", "fgd", "fragmentation:0.7,cost:0.3"])
def test_what_is_kept_of_a_class_equals_what_is_found_anew(strategy: str) -> None:
    draw = random.Random(strategy)
    snapshot = Snapshot()
    for number in range(200):
        snapshot.put_node(node(f"n{number:03}", draw.choice([32, 96]), 256, draw.choice([0, 2, 8]), draw.choice("AB")))
    kinds = [kind(draw.randrange(1, 12), draw.randrange(1, 40), gpus) for gpus in (None, ONE, SHARE, EIGHT, GpuAsk(2))]
    requests = [Request(amounts, "q35", strategy, gpus=gpus) for amounts, gpus in kinds]
    engine = Engine(snapshot, demand=Demand(lambda: asks_of(snapshot), learns=True))
    for number in range(300):
        engine.place(draw.choice(requests), f"w{number}", f"w{number}")
        if number % 7 == 3:
            snapshot.drop_allocation(f"w{draw.randrange(number)}")
    fresh = Engine(snapshot)
    fresh.expect(engine.outlook)
    assert engine.outlook.sorts
    for request in requests:
        assert np.array_equal(engine.scores(request, "x"), fresh.scores(request, "x"))


def test_what_runs_says_what_will_be_asked_for() -> None:
    snapshot = Snapshot()
    snapshot.put_node(node("a", 64, 256, 4))
    for number, load in enumerate([Load(gpus=((0, 600),)), Load(gpus=((1, 600),)), Load(gpus=((2, 1000), (3, 1000)))]):
        snapshot.put_allocation(f"w{number}", "a", (1000, GIB, 0), load)
    assert [(sort.gpus, round(sort.often, 2)) for sort in make_outlook(snapshot, asks_of(snapshot)).sorts] == [
        (SHARE, 0.67),
        (GpuAsk(2), 0.33),
    ]
