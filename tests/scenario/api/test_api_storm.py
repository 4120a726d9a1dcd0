"""Every operation of the API, asked with what its description allows and with what it doesn't: no 5xx, no hang."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from schemathesis.schemas import APIOperation
from tests.long import examples
from tests.scenario.api_lab import ApiLab
from tests.scenario.schema_storm import Storm, operations

SEED = 20261120
EXAMPLES = examples(6)  # requests to each operation; make soak asks far more


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    lab = ApiLab(tmp_path_factory.mktemp("storm"))
    storm = Storm(lab)
    yield storm
    storm.close()
    lab.close()


# Of the page, which is read at once: each worker makes the list, and the product's own description takes it two seconds.
PATHS = json.loads((Path(__file__).parents[3] / "docs" / "reference" / "openapi.json").read_bytes())["paths"]
# Prometheus's paths refuse in Prometheus's form, which the description doesn't have: test_metrics_history tries them.
OURS = [f"{method.upper()} {path}" for path in PATHS if not path.startswith("/api/v1/") for method in PATHS[path]]


@pytest.fixture(scope="module")
def described() -> dict[str, APIOperation[Any, Any, Any, Any]]:
    found = {operation.label: operation for operation in operations()}
    assert {label for label in found if " /api/v1/" not in label} == set(OURS), "docs/reference/openapi.json is old"
    return found


@pytest.mark.parametrize("label", OURS)
def test_what_the_description_says_is_what_the_api_servers_answer(
    storm: Storm, described: dict[str, APIOperation[Any, Any, Any, Any]], label: str
) -> None:
    storm.ask(described[label], SEED, EXAMPLES)
    assert storm.lab.client.http.request("GET", "/v1/healthz").status == 200
