"""Constraints over a table of nodes: the mask is what the words mean, and the reason is what the node has."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.contracts.policy import Request
from weft.language.amount import read_amount
from weft.language.parse import read_expression
from weft.language.tree import (
    Compare,
    Either,
    Every,
    Exists,
    Expression,
    Not,
    Preference,
    Within,
    either,
    every,
    show,
)
from weft.objects.errors import InvalidInput
from weft.scheduler.constraint.expressions import find_warnings
from weft.scheduler.constraint.match import describe_failure, find_meeting, split
from weft.scheduler.constraint.relax import Pressure, describe_given_up, find_given_up, measure_pressure
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import explain
from weft.scheduler.table.facts import Gpu, Load, NodeFacts
from weft.scheduler.table.snapshot import Snapshot

GIB = 2**30


def make_snapshot() -> Snapshot:
    """n1: nvme, 16 GiB, zone a; n2: hdd, 64 GiB, zone b, two GPUs; n3: nvme, 64 GiB, no zone, a TPM."""
    snapshot = Snapshot()
    shapes: list[tuple[str, int, dict[str, str], tuple[Gpu, ...]]] = [
        ("n1", 16, {"storage": "nvme", "zone": "a", "rack": "1"}, ()),
        ("n2", 64, {"storage": "hdd", "zone": "b", "rack": "2"}, (Gpu("A100", 40 * GIB), Gpu("A100", 40 * GIB))),
        ("n3", 64, {"storage": "nvme", "tpm": "2", "speed": "10G"}, ()),
    ]
    for name, memory, texts, gpus in shapes:
        snapshot.put_node(
            NodeFacts(
                uid=f"u-{name}",
                name=name,
                capacity=(8000, memory * GIB, 100 * GIB),
                online=True,
                cordoned=False,
                machines=frozenset({"q35"}),
                texts=texts,
                gpus=gpus,
                extras={"sriov": 4} if name == "n3" else {},
            )
        )
    return snapshot


def request(constraint: str | None = None, *preferences: Preference, strategy: str = "least_loaded") -> Request:
    tree = None if constraint is None else read_expression(constraint)
    return Request((1000, GIB, GIB), "q35", strategy, constraint=tree, preferences=preferences)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("storage=nvme", "n1 n3"),
        ("storage=nvme,memory>=32GB", "n3"),
        ("storage != nvme", "n2"),
        ("zone in (a,b)", "n1 n2"),
        ("zone not_in (a)", "n2 n3"),
        ("zone!=a", "n2 n3"),
        ("NOT zone=a", "n2 n3"),
        ("exists(tpm)", "n3"),
        ("exists(sriov) AND sriov>=4", "n3"),
        ("sriov.free>=4", "n3"),
        ("gpu.memory>=8GB", "n2"),
        ("gpu.model=A100", "n2"),
        ("gpu=available", "n2"),
        ("gpu!=available", "n1 n3"),
        ("gpu=0", "n1 n3"),
        ("exists(gpu)", "n2"),
        ("rack>=2", "n2"),
        ("rack=1.0", "n1"),
        ("rack in (2,3)", "n2"),
        ("speed=10240M", "n3"),
        ("speed<11G", "n3"),
        ("name=n1 OR cpu>8 OR tpm=2", "n1 n3"),
        ("cpu=8000m", "n1 n2 n3"),
        ("memory.free>60GiB", "n2 n3"),
        ("nothing=here", ""),
        ("nothing!=here", "n1 n2 n3"),
    ],
)
def test_nodes_that_meet_it(text: str, nodes: str) -> None:
    snapshot = make_snapshot()
    flags = find_meeting(read_expression(text), snapshot)
    assert [name for name, flag in zip(snapshot.names, flags, strict=True) if flag] == nodes.split()


@pytest.mark.parametrize(
    ("text", "node", "reason"),
    [
        ("storage=nvme", "n2", "storage is hdd, wanted nvme"),
        ("memory>=32GB", "n1", "memory 16.0 GiB, wanted >= 32GB (13.8 GiB short)"),
        (
            "storage=hdd,memory>=32GB",
            "n1",
            "storage is nvme, wanted hdd; memory 16.0 GiB, wanted >= 32GB (13.8 GiB short)",
        ),
        ("zone in (a,c)", "n3", "has no zone, wanted in (a,c)"),
        ("zone not_in (a)", "n1", "zone is a, wanted not_in (a)"),
        ("zone=a OR storage=hdd", "n3", "none of: has no zone, wanted a; storage is nvme, wanted hdd"),
        ("NOT exists(tpm)", "n3", "tpm is 2, wanted NOT exists(tpm)"),
        ("NOT (zone=a AND rack=1)", "n1", "wanted NOT (zone=a AND rack=1)"),
        ("gpu.memory>=8GB", "n1", "has no gpu.memory, wanted >= 8GB"),
        ("zone>3", "n1", "zone is a, wanted > 3"),
        ("gpu=available", "n1", "gpu is 0, wanted available"),
        ("cpu<4", "n1", "cpu 8, wanted < 4"),
    ],
)
def test_a_node_that_does_not_meet_it_is_told_why(text: str, node: str, reason: str) -> None:
    snapshot = make_snapshot()
    assert describe_failure(read_expression(text), snapshot, snapshot.names.index(node))[0] == reason


def test_what_is_taken_counts_for_what_is_available_and_for_nothing_else() -> None:
    snapshot = make_snapshot()
    engine = Engine(snapshot)
    wish = request("gpu=available, gpu.memory>=8GB")
    assert split(wish.constraint) == (read_expression("gpu.memory>=8GB"), read_expression("gpu=available"))  # type: ignore[arg-type]
    assert engine.choose(wish, "w") == 1
    snapshot.put_allocation("x", "u-n2", (0, 0, 0), Load(gpus=((0, 1000), (1, 1000))))
    assert engine.choose(wish, "w") is None
    assert engine.choose(request("gpu.memory>=8GB"), "w") == 1
    snapshot.drop_allocation("x")
    assert engine.choose(wish, "w") == 1


def test_a_label_that_changes_changes_the_choice() -> None:
    snapshot = make_snapshot()
    engine = Engine(snapshot)
    wish = request("zone=c")
    assert engine.choose(wish, "w") is None
    facts = snapshot.facts[0]
    snapshot.put_node(NodeFacts(**{**{f: getattr(facts, f) for f in facts.__struct_fields__}, "texts": {"zone": "c"}}))
    assert engine.choose(wish, "w") == 0


def test_a_preference_moves_the_choice_by_its_weight_whatever_the_strategy() -> None:
    snapshot = make_snapshot()
    zone_a = read_expression("zone=a")
    for strategy in ("least_loaded", "best_fit", "round_robin", "random"):
        engine = Engine(snapshot, seed=1)
        assert engine.choose(request(None, Preference(zone_a, 1.0), strategy=strategy), "w") == 0
        assert engine.scores(request(None, Preference(zone_a, 1.0), strategy=strategy), "w").max() <= 100.0
    engine = Engine(snapshot)
    plain, preferring = request(), request(None, Preference(zone_a, 0.0))
    assert np.array_equal(engine.scores(plain, "w"), engine.scores(preferring, "w"))
    terms = engine.terms(request(None, Preference(zone_a, 0.5)), "w", [0, 1])
    assert [column.name for column in terms] == ["cpu", "memory", "disk", "zone=a"]
    assert sum(column.weight for column in terms) == pytest.approx(1.0)
    assert terms[-1].values.tolist() == [100.0, 0.0]


def test_preferences_are_given_up_from_the_lowest_priority_as_room_gets_scarce() -> None:
    snapshot = make_snapshot()
    assert measure_pressure(snapshot) == Pressure("cpu", 0.0)
    wishes = [Preference(read_expression("zone=a"), 0.5, priority) for priority in range(4)]
    for taken, left in ((0.80, [0, 1, 2, 3]), (0.85, [1, 2, 3]), (0.92, [2, 3]), (0.99, [3])):
        snapshot.put_allocation("x", "u-n3", (0, 0, int(taken * 300 * GIB)))
        pressure = measure_pressure(snapshot)
        given_up = find_given_up(wishes, pressure)
        assert [wish.priority for wish in wishes if wish not in given_up] == left
    told = describe_given_up(wishes[0], pressure)
    assert (
        told == "preference zone=a was given up: 99% of the fabric's disk is allocated, and priority 0 counts up to 80%"
    )
    snapshot.put_allocation("y", "u-n2", (0, 0, 0), Load(gpus=((0, 1000), (1, 1000))))
    assert measure_pressure(snapshot) == Pressure("gpu", 1.0)


def test_an_expression_that_looks_wrong_is_warned_of() -> None:
    snapshot = make_snapshot()
    assert find_warnings(request("storage=nvme", Preference(read_expression("gpu=available"))), snapshot) == []
    assert find_warnings(request("NOT exists(tpm)"), snapshot) == []
    assert find_warnings(request("storge!=nvme"), snapshot) == ["no node has storge; did you mean storage?"]
    assert find_warnings(request("Memory!=1"), snapshot) == ["no node has Memory; did you mean memory?"]
    assert find_warnings(request("cost<3 OR zone!=x"), snapshot) == ["no node has cost"]
    torn = request("rack<3", Preference(read_expression("rack>5 OR NOT exists(rack)")))
    assert find_warnings(torn, snapshot) == [
        "preference rack>5 OR NOT exists(rack) can never hold together with the constraint"
    ]
    assert find_warnings(request("zone=a"), snapshot) == ["only 1 of 3 nodes meets zone=a"]


def test_nothing_is_said_of_a_preference_where_the_constraint_is_too_long_to_be_compared() -> None:
    """With the constraints that it names in full it is longer than one may write."""
    named = [read_expression(",".join(f"x{n}!={'y' * 60}" for n in range(60))) for _ in range(2)]
    clashing = Preference(read_expression("zone=b"))
    constraint = every([*named, read_expression("zone!=b")])
    with pytest.raises(InvalidInput, match="longer than"):
        read_expression(show(constraint))
    told = find_warnings(msgspec.structs.replace(request(None, clashing), constraint=constraint), make_snapshot())
    assert not [warning for warning in told if "never holds" in warning]
    short = find_warnings(request("zone!=b", clashing), make_snapshot())
    assert short == ["preference zone=b can never hold together with the constraint"]


def test_the_longest_preferences_still_make_a_decision_that_can_be_kept() -> None:
    snapshot = Snapshot()
    for n in range(64):
        facts = NodeFacts(
            f"u{n}", f"n{n:02}", (8000, GIB, GIB), True, False, frozenset({"q35"}), texts={"zone": "a" * 63}
        )
        snapshot.put_node(facts)
    engine = Engine(snapshot)
    long = ",".join(f"x{n}!={'y' * 40}" for n in range(60))
    preferences = [Preference(read_expression(f"{long},z{n}!=1")) for n in range(16)]
    for wish in (request("zone!=b", *preferences), request(long.replace("!=", "="), *preferences)):
        explanation = explain(engine, wish, "w", engine.choose(wish, "w"))
        assert len(msgspec.json.encode(explanation)) < 200_000  # an object may have 256 KiB


_values = st.sampled_from(["a", "b", "1", "2", "1.0", "1000", "1KB"])
_attributes = st.sampled_from(["x", "y", "z"])
_leaves = st.one_of(
    st.builds(Compare, _attributes, st.sampled_from(["eq", "neq"]), _values),
    st.builds(Compare, _attributes, st.sampled_from(["lt", "le", "gt", "ge"]), st.sampled_from(["1", "2", "1KB"])),
    st.builds(Within, _attributes, st.lists(_values, min_size=1, max_size=2).map(tuple), st.booleans()),
    st.builds(Exists, _attributes),
)
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(every),
        st.lists(inner, min_size=2, max_size=3).map(either),
        st.builds(Not, inner),
    ),
    max_leaves=6,
)
_nodes = st.lists(
    st.dictionaries(_attributes, st.sampled_from(["a", "b", "c", "0", "1", "1.5", "1000"])), min_size=1, max_size=4
)


def holds(tree: Expression, node: dict[str, str]) -> bool:
    """What a constraint means, told once more in the plainest way."""
    if isinstance(tree, Every):
        return all(holds(part, node) for part in tree.of)
    if isinstance(tree, Either):
        return any(holds(part, node) for part in tree.of)
    if isinstance(tree, Not):
        return not holds(tree.of, node)
    if isinstance(tree, Exists):
        return tree.attribute in node
    if isinstance(tree, Within):
        return any(holds(Compare(tree.attribute, "eq", value), node) for value in tree.values) is tree.inside
    assert isinstance(tree, Compare)
    has = node.get(tree.attribute)
    number, wanted = None if has is None else read_amount(has), read_amount(tree.value)
    if tree.operator in ("eq", "neq"):
        return (has == tree.value or (number is not None and number == wanted)) is (tree.operator == "eq")
    if number is None or wanted is None:
        return False
    return {"lt": number < wanted, "le": number <= wanted, "gt": number > wanted, "ge": number >= wanted}[tree.operator]


@given(_trees, _nodes)
@settings(max_examples=examples(200))
def test_the_mask_is_the_meaning_of_every_node_and_every_refusal_has_words(
    tree: Expression, nodes: list[dict[str, str]]
) -> None:
    snapshot = Snapshot()
    for index, texts in enumerate(nodes):
        snapshot.put_node(
            NodeFacts(
                f"u{index}", f"n{index}", (8000, 64 * GIB, 64 * GIB), True, False, frozenset({"q35"}), texts=texts
            )
        )
    flags = find_meeting(tree, snapshot)
    assert flags.tolist() == [holds(tree, node) for node in nodes]
    engine = Engine(snapshot)
    chosen = engine.choose(request(show(tree)), "w")
    assert (chosen is None) is not flags.any()
    assert chosen is None or flags[chosen]
    for index in np.flatnonzero(~flags):
        assert describe_failure(tree, snapshot, int(index))[0]
