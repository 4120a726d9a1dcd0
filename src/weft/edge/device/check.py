"""Whether what a device says can be: against its model, and how often it speaks. Pure."""

from __future__ import annotations

import math
from typing import Any

from weft.contracts.device import Value
from weft.edge.device.model import Property
from weft.kinds.fields.device.register import list_held

MOST_CHARACTERS = 1024  # of a text, whatever its model says
MOST_INTEGER = 1 << 53  # beyond it JSON readers disagree


def check_value(model: Property, value: Any) -> str:
    """Why ``value`` can't be one of the property: type, size, range or enum; "" when it can."""
    kind = model.type
    if kind == "number" or kind == "integer":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return "type"
        if isinstance(value, int):
            if abs(value) > MOST_INTEGER:  # first of all: a peer's integer may be more than a float holds
                return "range"
        elif kind == "integer" and not value.is_integer():
            return "type"
        elif not math.isfinite(value):
            return "range"
        if (model.minimum is not None and value < model.minimum) or (
            model.maximum is not None and value > model.maximum
        ):
            return "range"
    elif kind == "boolean":
        if not isinstance(value, bool):
            return "type"
    elif kind == "string":
        if not isinstance(value, str):
            return "type"
        if len(value) > min(MOST_CHARACTERS, model.max_length if model.max_length is not None else MOST_CHARACTERS):
            return "size"
    else:
        return "type"  # of a newer server's model
    return "enum" if model.enum and value not in model.enum else ""


def is_same(model: Property | None, one: Value, other: Value) -> bool:
    """Whether both are the same: numbers within the deadband, anything else exactly (True is not 1)."""
    if isinstance(one, bool) or isinstance(other, bool) or isinstance(one, str) or isinstance(other, str):
        return type(one) is type(other) and one == other
    near = model.deadband if model is not None and model.deadband else 0.0
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=near)


def is_held(model: Property | None, reported: Value, wanted: Value) -> bool:
    """Whether ``reported`` is what the device can hold of ``wanted``."""
    href = model.href if model is not None else ""
    return any(is_same(model, reported, held) for held in list_held(href, wanted))


class Allowance:
    """How many messages may come: ``rate`` a second, and ``2 · rate`` at once after a pause. Times: the clock's elapsed seconds."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: float, at: float) -> None:
        self._rate, self._left, self._at = rate, 2 * rate, at

    def takes(self, at: float) -> bool:
        left = min(2 * self._rate, self._left + (at - self._at) * self._rate)
        self._at = at
        self._left = left - 1.0 if left >= 1.0 else left
        return left >= 1.0
