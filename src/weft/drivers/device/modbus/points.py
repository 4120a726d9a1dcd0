"""The place of a property in a Modbus device, the meaning of its registers, and the requests that read them. Pure.

An href is ``TABLE/ADDRESS?type=…&scale=…``, like ``holding/0?type=int16&scale=0.1``. ADDRESS is that of the message, from 0: what a
manual calls 40001 is ``holding/0``.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

import msgspec

from weft.contracts.device import Value
from weft.kinds.fields.device.register import DEFAULT_TYPE, FORMATS, read_number, write_number
from weft.objects.errors import InvalidInput

BITS = ("coil", "discrete")
TABLES = (*BITS, "holding", "input")
MOST_REGISTERS, MOST_BITS = 125, 2000  # of one request, by the protocol
MOST_TEXT_REGISTERS = 64
MOST_GAP = 8  # registers that are read between two points rather than in another request
EXAMPLE = "holding/0?type=int16&scale=0.1"
TYPES = (*FORMATS, "text")


class Point(msgspec.Struct, frozen=True):
    """A property's place. ``size``: registers or bits. ``swapped``: the register with the lowest bits comes first."""

    table: str
    address: int
    type: str = DEFAULT_TYPE
    size: int = 1
    scale: float = 1.0
    swapped: bool = False

    @property
    def is_writable(self) -> bool:
        return self.table in ("coil", "holding")


class Block(msgspec.Struct, frozen=True):
    """One request: ``size`` registers or bits from ``address`` on, and the properties that lie in them."""

    table: str
    address: int
    size: int
    names: tuple[str, ...]


def read_href(href: str, name: str) -> Point:
    """Raises InvalidInput."""
    place, _, query = href.partition("?")
    match = re.fullmatch(r"([a-z]+)/([0-9]{1,5})", place)
    if match is None or match[1] not in TABLES or int(match[2]) > 0xFFFF:
        raise _refuse(
            name,
            f"{place[:60]!r} is not a register",
            f"write like {EXAMPLE}; the tables are {', '.join(TABLES)}",
        )
    table, address = match[1], int(match[2])
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=4)
    except ValueError:
        raise _refuse(name, f"{query[:60]!r} can't be read", f"write like {EXAMPLE}") from None
    given = dict(pairs)
    if len(given) != len(pairs) or given.keys() - {"type", "scale", "registers", "words"}:
        raise _refuse(
            name,
            f"{query[:60]!r} has something that is not known here",
            "it may have type, scale, registers and words, once each",
        )
    if table in BITS:
        if given:
            raise _refuse(name, f"a {table} is true or false", f"write {table}/{address}")
        return Point(table, address, "bool")
    type_ = given.get("type", DEFAULT_TYPE)
    if type_ not in TYPES:
        raise _refuse(name, f"{type_[:40]!r} is not a type", f"give one of {', '.join(TYPES)}")
    words = given.get("words", "big")
    if words not in ("big", "little"):
        raise _refuse(name, f"words: {words[:20]!r}", "give big or little")
    size, scale = _find_size(given, type_, name), _find_scale(given, type_, name)
    if address + size > 0x10000:
        raise _refuse(name, f"its {size} registers end beyond 65535", "give a lower address")
    return Point(table, address, type_, size, scale, words == "little")


def _find_size(given: Mapping[str, str], type_: str, name: str) -> int:
    registers = given.get("registers")
    if type_ != "text":
        if registers is not None:
            raise _refuse(name, "only a text says how many registers it has", "leave registers out")
        return struct.calcsize(FORMATS[type_]) // 2
    if registers is None or not re.fullmatch(r"[0-9]{1,3}", registers) or not 0 < int(registers) <= MOST_TEXT_REGISTERS:
        raise _refuse(
            name, "a text says how many registers it has", f"write type=text&registers=8, at most {MOST_TEXT_REGISTERS}"
        )
    return int(registers)


def _find_scale(given: Mapping[str, str], type_: str, name: str) -> float:
    try:
        scale = float(given.get("scale", "1"))
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale) or scale == 0 or (type_ == "text" and scale != 1):
        raise _refuse(
            name, f"scale: {given.get('scale', '')[:20]!r}", "give what a number of the device is times to be, like 0.1"
        )
    return scale


def plan_reads(points: Mapping[str, Point], *, single: bool = False) -> list[Block]:
    """The requests that read all of ``points``, few of them; ``single``: one for each."""
    blocks: list[Block] = []
    for name, point in sorted(points.items(), key=lambda item: (item[1].table, item[1].address, item[1].size)):
        last = blocks[-1] if blocks else None
        if last is not None and not single and last.table == point.table:
            size = max(last.address + last.size, point.address + point.size) - last.address
            most = MOST_BITS if point.table in BITS else MOST_REGISTERS
            if point.address - (last.address + last.size) <= MOST_GAP and size <= most:
                blocks[-1] = Block(last.table, last.address, size, (*last.names, name))
                continue
        blocks.append(Block(point.table, point.address, point.size, (name,)))
    return blocks


def decode(point: Point, words: Sequence[int]) -> Value | None:
    """The value of a point's registers; None: they hold no number, or no text. ``words``: 0 up to 65535 each, as many as it has."""
    ordered = list(reversed(words)) if point.swapped and point.type != "text" else words
    raw = struct.pack(f">{len(ordered)}H", *ordered)
    if point.type == "text":
        try:
            text = raw.split(b"\0", 1)[0].decode()
        except UnicodeDecodeError:
            return None
        return text if text.isprintable() else None
    number = read_number(point.type, point.scale, raw)
    return number if math.isfinite(number) else None


def encode(point: Point, value: Value, name: str) -> list[int]:
    """The registers that hold ``value``. Raises InvalidInput for one that they can't hold."""
    if point.type == "text":
        if not isinstance(value, str):
            raise _refuse_value(name, value, "it is a text there")
        raw = value.encode()
        if len(raw) > 2 * point.size or "\0" in value:
            raise _refuse_value(name, value, f"there are {2 * point.size} bytes for it")
        raw = raw.ljust(2 * point.size, b"\0")
    else:
        if isinstance(value, (bool, str)):
            raise _refuse_value(name, value, "it is a number there")
        try:
            raw = write_number(point.type, point.scale, value)
        except ValueError:
            raise _refuse_value(name, value, f"its registers hold {point.type}") from None
    words = list(struct.unpack(f">{len(raw) // 2}H", raw))
    return words[::-1] if point.swapped and point.type != "text" else words


def _refuse(name: str, what: str, hint: str) -> InvalidInput:
    return InvalidInput(f"properties.{name[:63]}.href: {what}", field=f"properties.{name[:63]}.href", hint=hint)


def _refuse_value(name: str, value: Value, why: str) -> InvalidInput:
    return InvalidInput(f"{name[:63]}: {str(value)[:40]!r} can't be written: {why}", field=name[:63])
