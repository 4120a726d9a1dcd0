"""What people type as the value of a device's property."""

from __future__ import annotations

from typing import Any

import pytest

from weft.cli.verbs.device import find_changes, find_twice, read_pair


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("setpoint=4", ("setpoint", 4)),
        ("setpoint=-1.5", ("setpoint", -1.5)),
        ("alarm=true", ("alarm", True)),
        ("mode=cool", ("mode", "cool")),
        ("label=4", ("label", "4")),
        ("label=a=b", ("label", "a=b")),
        ("odd=[1]", ("odd", "[1]")),
        ("mode-", ("mode", None)),
    ],
)
def test_a_value_is_read_as_its_property_has_it(pair: str, expected: tuple[str, Any]) -> None:
    assert read_pair(pair, {"label": "string", "setpoint": "number"}) == expected


def device(phase: str, **reported: Any) -> dict[str, Any]:
    return {"name": "fridge-1", "status": {"phase": phase, "last_seen": 5.0, "reported": reported}}


def test_a_watch_shows_each_value_that_changed_and_the_phase_if_it_did() -> None:
    before = device("Online", temperature=4.0, door="open", on=True)
    changes = list(find_changes(before, device("Stale", temperature=4.5, on=True)))
    assert [(one["phase"], one["property"], one["value"]) for one in changes] == [
        ("Stale", None, None),
        ("Stale", "temperature", 4.5),
        ("Stale", "door", None),
    ]
    assert all(one["device"] == "fridge-1" and one["last_seen"] == 5.0 for one in changes)


def test_a_watch_begins_with_all_that_is_known_of_a_device() -> None:
    assert [one["property"] for one in find_changes({}, device("Online", on=False))] == [None, "on"]
    assert list(find_changes({}, {"name": "new", "status": {}})) == []
    assert list(find_changes(device("Online", on=1), device("Online", on=1))) == []


def test_a_property_that_is_given_twice_is_found() -> None:
    assert find_twice(["a=1", "b=1", "a=2"]) == "a"
    assert find_twice(["a=1", "a-"]) == "a"
    assert find_twice(["a=1", "b=1"]) == ""
