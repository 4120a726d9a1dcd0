"""OPC UA's values and node ids in weft's terms, by the names of its types. Pure."""

from __future__ import annotations

import math
import re
from typing import Any

from weft.contracts.device import Value
from weft.drivers.device.address import split_place
from weft.kinds.fields.device.register import shorten_single
from weft.objects.errors import InvalidInput

PORT = 4840
EXAMPLE = "192.168.7.40:4840/server"
MOST_CHARACTERS = 1024
_INTEGERS = {  # how many bits, and whether one is a sign
    "SByte": (8, True), "Byte": (8, False), "Int16": (16, True), "UInt16": (16, False),
    "Int32": (32, True), "UInt32": (32, False), "Int64": (64, True), "UInt64": (64, False),
}  # fmt: skip


def read_address(text: str) -> tuple[str, int, str]:
    """Host, port and path. Raises InvalidInput."""
    place, slash, path = text.partition("/")
    host, port = split_place(place, PORT, EXAMPLE)
    if not re.fullmatch(r"[A-Za-z0-9._~/-]{0,120}", path):
        raise InvalidInput(f"address: {path[:60]!r} is not a path", field="spec.address", hint=f"write like {EXAMPLE}")
    return host, port, slash + path


def check_href(href: str, name: str) -> str:
    """A node id, as OPC UA writes it. Raises InvalidInput."""
    number = re.fullmatch(r"(?:ns=([0-9]{1,5});)?(?:i=([0-9]{1,10})|s=[^\x00-\x1f\x7f]{1,190})", href)
    if number is None or int(number[1] or 0) > 0xFFFF or int(number[2] or 0) > 0xFFFFFFFF:
        field = f"properties.{name[:63]}.href"
        raise InvalidInput(
            f"{field}: {href[:60]!r} is not a node id",
            field=field,
            hint="write like ns=2;s=Oven.Temperature",
        )
    return href


def read_value(type_: str, value: Any) -> Value | None:
    """The value of a variant of that type; None: weft has no such values."""
    if type_ == "Boolean" and isinstance(value, bool):
        return value
    if type_ in _INTEGERS and isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if type_ in ("Float", "Double") and isinstance(value, (int, float)) and math.isfinite(value):
        return shorten_single(value) if type_ == "Float" else float(value)
    if type_ == "String" and isinstance(value, str) and len(value) <= MOST_CHARACTERS and value.isprintable():
        return value
    return None


def write_value(type_: str, value: Value, name: str) -> Value:
    """``value`` as one of that type. Raises InvalidInput."""
    if type_ == "Boolean" and isinstance(value, bool):
        return value
    if type_ == "String" and isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if type_ in ("Float", "Double"):
            if type_ == "Double" or abs(value) <= 3.4028234663852886e38:
                return float(value)
        elif type_ in _INTEGERS and float(value).is_integer():
            bits, signed = _INTEGERS[type_]
            least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
            if least <= value <= most:
                return int(value)
    nearest = ""
    if isinstance(value, float) and type_ in _INTEGERS and math.isfinite(value):
        nearest = f"; the nearest it can hold is {round(value)}"
    raise InvalidInput(
        f"{name[:63]}: {str(value)[:40]!r} can't be written: it is a {type_[:40]} there{nearest}", field=name[:63]
    )
