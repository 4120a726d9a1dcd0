"""Where a server says that others reach it, of the addresses on which it listens."""

from __future__ import annotations

import pytest

from weft.launch.process.address import find_shown_place


@pytest.mark.parametrize(
    ("listeners", "own", "shown"),
    [
        (["127.0.0.1:8444"], ["10.0.0.1"], "127.0.0.1:8444"),
        (["127.0.0.1:8444", "10.0.0.2:9444"], ["10.0.0.1"], "10.0.0.2:9444"),
        (["0.0.0.0:8444"], ["10.0.0.1", "10.0.0.2"], "10.0.0.1:8444"),
        (["0.0.0.0:8444"], [], "127.0.0.1:8444"),
        (["localhost:8444", "gate.example:8444"], [], "gate.example:8444"),
        (["[fd00::1]:8444"], [], "[fd00::1]:8444"),
        ([], ["10.0.0.1"], ""),
    ],
)
def test_others_are_given_an_address_that_they_reach(listeners: list[str], own: list[str], shown: str) -> None:
    assert find_shown_place(listeners, own) == shown
