"""One decision: it is the best under its own score, it is repeatable, and its explanation says what it did."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.contracts.policy import RESOURCES, Request
from weft.kinds.fields.strategy import STRATEGIES
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import explain
from weft.scheduler.table.snapshot import NodeFacts, Snapshot

GIB = 1024**3
facts = st.builds(
    NodeFacts,
    uid=st.just(""),
    name=st.just(""),
    capacity=st.tuples(st.integers(0, 16000), st.integers(0, 64 * GIB), st.integers(0, 100 * GIB)),
    online=st.sampled_from([True, True, True, False]),
    cordoned=st.sampled_from([False, False, False, True]),
    machines=st.sampled_from([frozenset({"q35"}), frozenset({"q35", "microvm"}), frozenset()]),
)
requests = st.builds(
    Request,
    amounts=st.tuples(st.integers(100, 8000), st.integers(1, 32 * GIB), st.integers(0, 50 * GIB)),
    machine=st.sampled_from(["q35", "q35", "microvm"]),
    strategy=st.sampled_from([*STRATEGIES, "best_fit:0.7,data_locality:0.3", "cost,topology_spread=zone/2,random"]),
    node=st.sampled_from([None, None, None, "n1"]),
    home=st.sampled_from([None, None, None, "u2"]),
)


def make(nodes: list[NodeFacts]) -> Snapshot:
    snapshot = Snapshot()
    for number, node in enumerate(nodes):
        snapshot.put_node(msgspec.structs.replace(node, uid=f"u{number}", name=f"n{number}"))
    return snapshot


def fits(snapshot: Snapshot, index: int, request: Request) -> bool:
    """Spelt out once more, one node at a time."""
    free = snapshot.capacity[:, index] - snapshot.allocated[:, index]
    return bool(
        snapshot.online[index]
        and not snapshot.cordoned[index]
        and request.node in (None, snapshot.names[index])
        and request.home in (None, snapshot.uids[index])
        and snapshot.machine(request.machine)[index]
        and all(f >= w for f, w in zip(free, request.amounts, strict=True))
    )


def load(snapshot: Snapshot, index: int, request: Request) -> float:
    shares = [
        100.0 * (a + w) / c
        for a, w, c in zip(snapshot.allocated[:, index], request.amounts, snapshot.capacity[:, index], strict=True)
        if c
    ]
    return sum(weight * share for weight, share in zip((0.4, 0.4, 0.2), shares, strict=False))


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(facts, max_size=8), st.lists(requests, min_size=1, max_size=12))
def test_every_choice_fits_is_the_best_and_is_explained(nodes: list[NodeFacts], asked: list[Request]) -> None:
    snapshot = make(nodes)
    engine = Engine(snapshot)
    for number, request in enumerate(asked):
        uid = f"vm{number}"
        chosen = engine.choose(request, uid)
        able = [index for index in range(len(snapshot)) if fits(snapshot, index, request)]
        told = explain(engine, request, uid, chosen)
        assert (chosen is not None) == bool(able)
        assert {v.node for v in told.verdicts if v.outcome != "refused"} == {snapshot.names[i] for i in able}
        assert sum(told.refused_by.values()) == len(snapshot) - len(able)
        assert told.nodes == len(snapshot) == len(told.verdicts)
        # What is kept from before gives the same as an engine that has seen nothing.
        fresh = Engine(snapshot)
        fresh.last = engine.last
        assert fresh.choose(request, uid) == chosen
        if chosen is None:
            assert told.error in ("insufficientResources", "noAvailableAgents") and told.message
            check_nearest(snapshot, request, told.nearest_node, told.nearest)
            continue
        best = told.verdicts[0]
        assert (best.node, best.outcome) == (snapshot.names[chosen], "chosen") and not told.error
        for verdict in told.verdicts:
            if verdict.score is not None:
                assert verdict.score == pytest.approx(sum(t.weight * t.value for t in verdict.terms), abs=0.01)
                assert best.score is not None and verdict.score <= best.score
        if request.strategy in ("least_loaded", "best_fit") and snapshot.capacity[:, able].all():
            loads = {index: load(snapshot, index, request) for index in able}
            ideal = (min if request.strategy == "least_loaded" else max)(loads.values())
            assert loads[chosen] == pytest.approx(ideal)
        snapshot.put_allocation(f"a{number}", snapshot.uids[chosen], request.amounts)
        engine.last = snapshot.names[chosen]
    assert (snapshot.allocated <= snapshot.capacity).all()


def check_nearest(snapshot: Snapshot, request: Request, node: str, words: str) -> None:
    """Who asks for what ``nearest`` says gets it there."""
    if not node:
        return
    assert words.startswith(f"{node}, if you ask for at most --")
    amounts = list(request.amounts)
    flags = words.partition("at most ")[2].split()
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        row = ["--cpu", "--memory", "--disk"].index(flag)
        amounts[row] = round(float(value) * 1000) if row == 0 else int(value[:-1]) * {"G": GIB, "M": 1024**2}[value[-1]]
    smaller = msgspec.structs.replace(request, amounts=tuple(amounts))
    assert fits(snapshot, snapshot.names.index(node), smaller)


def node(name: str, cpu: int = 8, memory: int = 16, **more: object) -> NodeFacts:
    return NodeFacts(
        uid=f"uid-{name}",
        name=name,
        capacity=(cpu * 1000, memory * GIB, 100 * GIB),
        online=bool(more.get("online", True)),
        cordoned=bool(more.get("cordoned", False)),
        machines=frozenset({"q35"}),
    )


def ask(cpu: float = 1, memory: int = 1, strategy: str = "least_loaded", **more: object) -> Request:
    return Request((round(cpu * 1000), memory * GIB, GIB), "q35", strategy, **more)  # type: ignore[arg-type]


def engine_of(*nodes: NodeFacts) -> Engine:
    snapshot = Snapshot()
    for each in nodes:
        snapshot.put_node(each)
    return Engine(snapshot)


def name_of(engine: Engine, request: Request, uid: str = "x") -> str | None:
    row = engine.choose(request, uid)
    return None if row is None else engine.snapshot.names[row]


def test_least_loaded_weighs_cpu_memory_and_disk_as_the_spec_says() -> None:
    engine = engine_of(node("n1"))
    [verdict] = explain(engine, ask(cpu=2, memory=4), "x", 0).verdicts
    assert [(t.name, t.weight, t.value) for t in verdict.terms] == [
        ("cpu", 0.4, 75.0),
        ("memory", 0.4, 75.0),
        ("disk", 0.2, 99.0),
    ]
    assert verdict.score == pytest.approx(0.4 * 75 + 0.4 * 75 + 0.2 * 99)


def test_equal_nodes_are_taken_in_the_order_of_their_names_however_they_came() -> None:
    assert name_of(engine_of(node("n2"), node("n1"), node("n10")), ask()) == "n1"


def test_least_loaded_takes_the_emptier_node_and_best_fit_the_fuller() -> None:
    engine = engine_of(node("big", cpu=64, memory=256), node("small"))
    assert name_of(engine, ask()) == "big"
    assert name_of(engine, ask(strategy="best_fit")) == "small"


def test_random_is_the_same_for_the_same_workload_and_takes_every_node_in_time() -> None:
    engine = engine_of(*(node(f"n{n}") for n in range(5)))
    request = ask(strategy="random")
    assert name_of(engine, request, "one") == name_of(engine, request, "one")
    assert {name_of(engine, request, f"vm{n}") for n in range(100)} == {f"n{n}" for n in range(5)}


def test_round_robin_goes_on_after_a_node_that_is_gone() -> None:
    engine = engine_of(node("n1"), node("n3"))
    engine.last = "n2"
    assert name_of(engine, ask(strategy="round_robin")) == "n3"
    engine.last = "n3"
    assert name_of(engine, ask(strategy="round_robin")) == "n1"


@pytest.mark.parametrize(("kind", "resource"), list(enumerate(RESOURCES)))
def test_a_node_takes_what_it_has_just_room_for_and_nothing_more_of_any_resource(kind: int, resource: str) -> None:
    exact = (2000, 4 * GIB, 10 * GIB)
    cpu, memory, disk = (amount + (row == kind) for row, amount in enumerate(exact))
    engine = engine_of(msgspec.structs.replace(node("n1"), capacity=(4000, 8 * GIB, 20 * GIB)))
    engine.snapshot.put_allocation("a", "uid-n1", exact)
    refused, taken = (Request(amounts, "q35", "least_loaded") for amounts in ((cpu, memory, disk), exact))
    assert name_of(engine, taken) == "n1" and name_of(engine, refused) is None
    (verdict,) = explain(engine, refused, "x", None).verdicts
    assert [lack.resource for lack in verdict.shortfalls] == [resource]


def test_errors_are_named_by_what_is_missing() -> None:
    def error(*nodes: NodeFacts, **more: object) -> str:
        return explain(engine_of(*nodes), ask(cpu=4, **more), "x", None).error

    assert error() == "noAvailableAgents"
    assert error(node("n1", online=False), node("n2", cordoned=True)) == "noAvailableAgents"
    assert error(node("n1", cpu=2), node("n2", online=False)) == "insufficientResources"
    assert error(node("n1"), node("n2", cpu=2), node="n2") == "insufficientResources"


def test_room_that_is_there_but_not_in_one_place_is_told_so() -> None:
    engine = engine_of(node("n1", cpu=2, memory=64), node("n2", cpu=64, memory=2))
    message = explain(engine, ask(cpu=8, memory=8), "x", None).message
    assert message.startswith("no node has 8 cpu, 8.0 GiB memory") and message.endswith("free at the same time")


def test_of_a_thousand_nodes_a_sample_is_told_but_all_are_counted() -> None:
    engine = engine_of(*(node(f"n{n:04}", cpu=2 if n % 2 else 8) for n in range(1000)))
    request = ask(cpu=4)
    told = explain(engine, request, "x", engine.choose(request, "x"))
    assert told.nodes == 1000 and told.refused_by == {"resources": 500}
    assert len(told.verdicts) < 20 and told.verdicts[0].outcome == "chosen" and told.verdicts[1].reason == "runner-up"
    nothing = ask(cpu=100)
    refused = explain(engine, nothing, "x", engine.choose(nothing, "x"))
    assert refused.refused_by == {"resources": 1000} and refused.nearest_node in {v.node for v in refused.verdicts}


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(facts, min_size=8, max_size=14),
    st.lists(requests, min_size=1, max_size=3),
    st.lists(
        st.tuples(
            st.integers(0, 2), st.sampled_from(["place", "place", "leave", "node", "gone"]), st.integers(0, 13), facts
        ),
        max_size=30,
    ),
)
def test_scores_that_were_kept_are_those_one_would_find_anew(
    nodes: list[NodeFacts], asked: list[Request], history: list[tuple[int, str, int, NodeFacts]]
) -> None:
    snapshot = make(nodes)
    engine = Engine(snapshot)
    for number, (which, what, index, new) in enumerate(history):
        request = asked[which % len(asked)]
        match what:
            case "place" if (row := engine.choose(request, "x")) is not None:
                snapshot.put_allocation(f"a{number}", snapshot.uids[row], request.amounts)
                engine.last = snapshot.names[row]
            case "leave":
                snapshot.drop_allocation(f"a{index}")
            case "node":
                snapshot.put_node(msgspec.structs.replace(new, uid=f"u{index}", name=f"n{index}"))
            case "gone":
                snapshot.drop_node(f"u{index}")
        fresh = Engine(snapshot)
        fresh.last = engine.last
        for each in asked:
            chosen = engine.choose(each, "x")
            scores = fresh.scores(each, "x")
            best = (
                [name for _, name in sorted(zip(-scores, snapshot.names, strict=True))]
                if max(scores, default=-1) >= 0
                else []
            )
            assert best[:1] == ([] if chosen is None else [snapshot.names[chosen]])
            if number % 3 == 0:
                assert engine.scores(each, "x").tolist() == scores.tolist()
