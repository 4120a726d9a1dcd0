"""A device's message: JSON with a value for each name. Pure.

One odd member costs nothing but itself: null says that the device doesn't know the value now, and is left out; what is no value is
named. Nearly all messages are plain, and are decoded at once.
"""

from __future__ import annotations

import msgspec

from weft.contracts.device import Value

MOST_PROPERTIES = 200  # of a message
_plain = msgspec.json.Decoder(dict[str, Value])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value = msgspec.json.Decoder(Value | None)
_NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class PayloadRefused(Exception):
    """A payload that is not a message, for ``reason``: "payload" or "size"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_message(payload: bytes) -> tuple[dict[str, Value], list[str]]:
    """Its values, and the names of members that are none: an object, a list, a number that is too large. Raises PayloadRefused."""
    wrong: list[str] = []
    try:
        values = _plain.decode(payload)
    except _NO_JSON:
        values = _read_members(payload, wrong)
    if len(values) + len(wrong) > MOST_PROPERTIES:
        raise PayloadRefused("size")
    return values, wrong


def _read_members(payload: bytes, wrong: list[str]) -> dict[str, Value]:
    try:
        members = _members.decode(payload)
    except _NO_JSON:
        raise PayloadRefused("payload") from None
    values: dict[str, Value] = {}
    for name, raw in members.items():
        try:
            value = _value.decode(raw)
        except _NO_JSON:
            wrong.append(name)
        else:
            if value is not None:
                values[name] = value
    return values
