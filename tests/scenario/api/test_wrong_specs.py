"""Containers, functions, jobs and conversions with one strange value in a field: what is refused names the field and what would be
right, writes nothing, and the API servers go on; no value makes them busy for long or tell much."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tests.scenario.api_lab import ApiLab
from tests.scenario.wrong_specs import Asker, all_draws

SEED, EXAMPLES = 20261121, 900


@pytest.fixture
def asker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    lab = ApiLab(tmp_path_factory.mktemp("wrong"))
    yield Asker(lab)
    lab.close()


@pytest.mark.parametrize("most", [EXAMPLES, pytest.param(None, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_a_strange_value_is_refused_by_its_field_or_does_no_harm(asker: Asker, most: int | None) -> None:
    draws = all_draws()
    assert asker.ask(draws if most is None else random.Random(SEED).sample(draws, most)) == []
    assert asker.refused > len(asker.accepted) > 0
    assert asker.lab.client.http.request("GET", "/v1/healthz").status == 200


def test_thousands_of_mistakes_are_told_as_a_few(asker: Asker) -> None:
    spec = {"image": "r.example.org/a:1", **{f"memory{n}": 1 for n in range(100_000)}, "x" * 1_000_000: 1}
    path = "/v1/projects/default/containers"
    answer = asker.lab.client.http.request("POST", path, {"kind": "container", "name": "odd", "spec": spec})
    assert (answer.status, answer.json()["field"], answer.json()["hint"]) == (
        400,
        "spec.memory0",
        "did you mean spec.memory?",
    )
    assert len(answer.body) < 10_000
