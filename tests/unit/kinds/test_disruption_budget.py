"""What a disruption budget may say."""

from __future__ import annotations

from typing import Any

import pytest

from weft.api.admission.admit import read_spec
from weft.kinds.disruption_budget import DISRUPTION_BUDGET
from weft.objects.errors import WeftError

WEB = {"app": "web"}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"max_unavailable": 1}, "spec.selector"),
        ({"selector": {}, "max_unavailable": 1}, "spec.selector"),
        ({"selector": {f"k{n}": "v" for n in range(9)}, "max_unavailable": 1}, "spec.selector"),
        ({"selector": {"a b": "c"}, "max_unavailable": 1}, "spec.selector.a b"),
        ({"selector": {"app": "x" * 64}, "max_unavailable": 1}, "spec.selector.app"),
        ({"selector": "app=web", "max_unavailable": 1}, "spec.selector"),
        ({"selector": WEB}, "spec.max_unavailable"),
        ({"selector": WEB, "max_unavailable": 1, "min_available": 1}, "spec.max_unavailable"),
        ({"selector": WEB, "max_unavailable": -1}, "spec.max_unavailable"),
        ({"selector": WEB, "max_unavailable": "25%"}, "spec.max_unavailable"),
        ({"selector": WEB, "min_available": 10**9}, "spec.min_available"),
        ({"selector": WEB, "min_available": 1.5}, "spec.min_available"),
        ({"selector": WEB, "max_unavailable": 1, "max_surge": 1}, "spec.max_surge"),
    ],
)
def test_strange_values_name_their_field(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(WeftError) as caught:
        read_spec(DISRUPTION_BUDGET, spec)
    problem = caught.value
    assert field in (
        problem.field,
        *(part["field"] for part in problem.details.get("problems", [])),
        problem.message.split(":")[0],
    )


def test_one_of_both_bounds_is_enough() -> None:
    for spec in ({"max_unavailable": 0}, {"min_available": 3}):
        assert read_spec(DISRUPTION_BUDGET, {"selector": WEB, **spec}).selector == WEB
