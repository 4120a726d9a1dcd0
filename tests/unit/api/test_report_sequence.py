"""Reports of a node that come late don't take the place of newer ones."""

from __future__ import annotations

import pytest

from weft.api.state.report_sequence import NONE, is_late


@pytest.mark.parametrize(
    ("stored", "version", "late"),
    [
        (NONE, "a.1", False),
        ("a.9", "a.10", False),
        ("a.9", "a.9", False),  # the same again
        ("a.10", "a.9", True),
        ("a.10", "b.1", False),  # of another life: it can't be known
        ("a.10", "", False),  # of an agent that doesn't number them
        ("a.10", "a.x", False),
    ],
)
def test_only_an_older_one_of_the_same_life_is_late(stored: str, version: str, late: bool) -> None:
    assert is_late(stored, version) is late
