"""Every operation of the API, asked with what its description allows and with what it doesn't: no 5xx, no hang."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
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


# Prometheus's paths refuse in Prometheus's form, which the description doesn't have: test_metrics_history tries them.
OURS = [operation for operation in operations() if not operation.path.startswith("/api/v1/")]


@pytest.mark.parametrize("operation", OURS, ids=lambda operation: operation.label)
def test_what_the_description_says_is_what_the_api_servers_answer(storm: Storm, operation) -> None:  # type: ignore[no-untyped-def]
    storm.ask(operation, SEED, EXAMPLES)
    assert storm.lab.client.http.request("GET", "/v1/healthz").status == 200
