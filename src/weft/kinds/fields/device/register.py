"""Number that a device gives back after it was set to one. Pure.

A register of Modbus holds whole numbers, times a scale, or floats of 32 bits; devices of other protocols often have floats of 32
bits, too. What was written is there when the number has come back by the same way: 21.7 as 21.700000762939453, or -1.74 in
tenths as -1.7.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import parse_qsl

Value = bool | int | float | str
FORMATS = {
    "int16": ">h", "uint16": ">H", "int32": ">i", "uint32": ">I", "int64": ">q", "uint64": ">Q", "float32": ">f", "float64": ">d",
}  # fmt: skip
SINGLE = "float32"
DEFAULT_TYPE = "uint16"
_REGISTER = re.compile(r"holding/[0-9]{1,5}(?:\?(.*))?")
_LEAST_DIGITS, _MOST_DIGITS = 6, 9  # of a float of 32 bits


def write_number(type_: str, scale: float, value: int | float) -> bytes:
    """The registers' bytes. Raises ValueError for a number that they can't hold."""
    number = value / scale if scale != 1 else value
    try:
        return struct.pack(FORMATS[type_], float(number) if type_.startswith("float") else round(number))
    except (struct.error, OverflowError) as problem:
        raise ValueError(str(problem)) from None


def read_number(type_: str, scale: float, raw: bytes) -> int | float:
    """It may be infinite, or NaN."""
    number: int | float = struct.unpack(FORMATS[type_], raw)[0]
    if type_ == SINGLE:
        number = shorten_single(number)
    return float(f"{number * scale:.12g}") if scale != 1 else number  # 45 · 0.1 is 4.5


def shorten_single(number: float) -> float:
    """A float of 32 bits with the digits that it has: 21.700000762939453 is 21.7."""
    for digits in range(_LEAST_DIGITS, _MOST_DIGITS):
        shorter = float(f"{number:.{digits}g}")
        if _make_single(shorter) == number:
            return shorter
    return number


def list_held(href: str, wanted: Value) -> Iterator[Value]:
    """Values that a device may report once it was set to ``wanted``; first what its register at ``href`` holds of that, if it has
    one."""
    if isinstance(wanted, (bool, str)):
        yield wanted
        return
    register = _read_register(href) if href else None
    if register is not None:
        try:
            yield read_number(*register, write_number(*register, wanted))
        except ValueError:
            yield wanted
    yield wanted
    single = _make_single(wanted)
    if single is not None:
        yield single


def find_held(href: str, wanted: Value) -> Value:
    """The value that the register at ``href`` holds of ``wanted``."""
    return next(list_held(href, wanted))


def _make_single(number: int | float) -> float | None:
    """None: 32 bits are too few."""
    try:
        return float(struct.unpack(">f", struct.pack(">f", number))[0])
    except (struct.error, OverflowError):
        return None


@lru_cache(4096)
def _read_register(href: str) -> tuple[str, float] | None:
    """Type and scale of a register of numbers; None for anything else."""
    found = _REGISTER.fullmatch(href)
    if found is None:
        return None
    given = dict(parse_qsl(found[1] or "", keep_blank_values=True))
    type_ = given.get("type", DEFAULT_TYPE)
    try:
        scale = float(given.get("scale", "1"))
    except ValueError:
        return None
    return (type_, scale) if type_ in FORMATS and scale not in (0.0, float("inf"), float("-inf")) else None
