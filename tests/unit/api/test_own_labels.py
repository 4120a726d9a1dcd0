"""Labels that only weft sets: people's changes of an object leave them as they are."""

from __future__ import annotations

import pytest

from weft.api.admission.refusals import keep_own_labels
from weft.objects.errors import InvalidInput

OWN = {"weft/deployment": "web", "weft/revision": "2"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"app": "shop"}, {"app": "shop", **OWN}),  # they need not be given
        ({"app": "shop", **OWN}, {"app": "shop", **OWN}),
        ({}, OWN),
    ],
)
def test_they_stay_whatever_else_is_changed(given: dict[str, str], kept: dict[str, str]) -> None:
    assert keep_own_labels(given, {"app": "web", **OWN}) == kept


@pytest.mark.parametrize("given", [{"weft/revision": "3"}, {"weft/draining": "1"}, {"weft/own": "word"}])
def test_a_new_one_or_another_value_is_refused_with_its_name(given: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="only weft sets labels that begin with weft/") as refused:
        keep_own_labels(given, OWN)
    assert refused.value.field == f"labels.{next(iter(given))}"
