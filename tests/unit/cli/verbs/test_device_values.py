"""What people type as the value of a device's property."""

from __future__ import annotations

from typing import Any

import pytest

from weft.cli.verbs.device import read_pair


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
