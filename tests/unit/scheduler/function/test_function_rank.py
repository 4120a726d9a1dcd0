"""The serverless choice: the best nodes first, and a refusal that says why at once."""

from __future__ import annotations

import random

import pytest
from tests.unit.scheduler.policies.test_policies import GIB, ask, make, node, put

from weft.contracts.policy import Datum
from weft.kinds.fields.strategy import SERVERLESS_STRATEGY
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.function.rank import rank_places
from weft.scheduler.table.facts import Gpu


def test_the_scores_are_the_promised_weights_of_four_things() -> None:
    snapshot = make(
        node("near", round_trips={"uid-far": 60.0}),
        node("far", data=frozenset({"pool:raw"})),
        node("gpu", gpus=(Gpu("T4", 16 * GIB),)),
    )
    request = ask(SERVERLESS_STRATEGY, data=(Datum("pool:raw", GIB),), caller="uid-near", mode="serverless")
    engine = Engine(snapshot)
    ranked = rank_places(engine, request, "call")
    columns = {column.name: column for column in engine.terms(request, "call", [0, 1, 2])}
    assert {name: column.weight for name, column in columns.items()} == {
        "least_loaded": 0.3,
        "data_locality": 0.3,
        "network_proximity": 0.2,
        "hardware_match": 0.2,
    }
    assert isinstance(ranked, list)
    assert [place.node for place in ranked] == ["far", "near", "gpu"]
    for place in ranked:
        row = snapshot.names.index(place.node)
        assert place.score == pytest.approx(sum(c.weight * c.values[row] for c in columns.values()))


def test_the_first_is_what_the_engine_chooses_and_no_better_one_is_left_out() -> None:
    draw = random.Random(7)
    snapshot = make(*(node(f"n{i:03}", cpu=draw.randint(1, 16), memory=draw.randint(1, 64)) for i in range(300)))
    for number in range(300):
        put(snapshot, f"n{number:03}", draw.choice([0, 1, 2]), 1)
    for cpu in (0.5, 1, 4, 12):
        request = ask(SERVERLESS_STRATEGY, cpu=cpu, memory=1, mode="serverless")
        engine = Engine(snapshot)
        ranked = rank_places(engine, request, "call", 5)
        assert isinstance(ranked, list)
        row = engine.choose(request, "call")
        assert row is not None and ranked[0].node == snapshot.names[row]
        scores = engine.scores(request, "call")
        best = sorted(((-score, name) for score, name in zip(scores, snapshot.names, strict=True) if score >= 0))[:5]
        assert [(-place.score, place.node) for place in ranked] == best


def test_a_refusal_is_final_and_says_why_at_once() -> None:
    snapshot = make(node("n1", cpu=2), node("n2", cordoned=True))
    refused = rank_places(Engine(snapshot), ask(SERVERLESS_STRATEGY, cpu=4, mode="serverless"), "call")
    assert isinstance(refused, Explanation) and refused.error == "insufficientResources"
    assert refused.nearest_node == "n1" and refused.refused_by == {"cordon": 1, "resources": 1}
    assert isinstance(rank_places(Engine(make()), ask("random"), "call"), Explanation)
