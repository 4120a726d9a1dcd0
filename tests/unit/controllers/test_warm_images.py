"""What is said of an image of which every node keeps a booted machine."""

from __future__ import annotations

import pytest

from weft.controllers.image.warm import describe_nodes
from weft.kinds.image import read_cores
from weft.objects.errors import InvalidInput


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"n1": "ready", "n2": "ready"}, (True, "", "2 of 2 nodes")),
        ({"n1": "ready", "n2": "making"}, (False, "making", "1 of 2 nodes")),
        ({"n1": "ready", "n2": ""}, (False, "making", "1 of 2 nodes")),
        ({"n1": "ready", "n2": "no space"}, (False, "notWarm", "1 of 2 nodes; n2: no space")),
        ({}, (False, "noNode", "no node that is ready runs VMs")),
    ],
)
def test_the_condition_counts_nodes_and_says_why_one_has_none(
    words: dict[str, str], told: tuple[bool, str, str]
) -> None:
    assert describe_nodes(words) == told


def test_a_range_of_cores_is_read() -> None:
    assert read_cores("1-4") == (1, 4) and read_cores("2") == (2, 2)


@pytest.mark.parametrize("text", ["", "0-2", "4-1", "1-17", "1-2-3", "a", "1.5", "-1", "²"])
def test_what_is_no_range_of_cores_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_cores(text)
    assert refused.value.field == "spec.warm.cpu" and refused.value.hint
