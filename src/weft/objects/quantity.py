"""Quantities as people write them: sizes, cores, durations, percentages; and the order of cells with them. Pure.

Sizes: ``K M G T P`` and ``Ki Mi …``/``KiB MiB …`` count in 1024s; ``KB MB GB TB PB`` count in 1000s. A bare number is bytes.
Durations: ``500ms 30s 5m 2h 7d 1w`` or several after each other (``1h30m``); a bare number is seconds.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from weft.objects.errors import InvalidInput

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SIZE = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s|m|h|d|w)")
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
MAX_BYTES = 2**60
LONGEST_SHOWN = 80  # characters of a refused text
LAST_MOMENT = 253402300799.0  # seconds since 1970: calendars end with the year 9999
NONE = "–"  # an empty cell
_CELL = re.compile(r"(-?\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|PiB|ms|s|m|h|d|w|%)?(?:\s*/.*)?")
_SIZES = {unit: 1024.0**power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))}
_NUMBERS = re.compile(r"([0-9]+)")
SortKey = tuple[int, float, str]
_LEAST_SIZE = 2**20  # a bare number from here on is shown as bytes


def _bad(text: object, field: str, what: str, hint: str) -> InvalidInput:
    return InvalidInput(f"{field}: {str(text)[:LONGEST_SHOWN]!r} is not {what}", field=field, hint=hint)


def parse_bytes(text: object, field: str = "size") -> int:
    """Bytes from ``256M``, ``1.5GiB``, ``32GB`` or a whole number. Raises InvalidInput naming ``field``."""
    hint = "write a size like 512M, 4G or 1.5GiB"
    if isinstance(text, bool) or not isinstance(text, (int, float, str)):
        raise _bad(text, field, "a size", hint)
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise _bad(text, field, "a size", hint)
    number, unit = float(match[1]), match[2].lower()
    if unit in ("", "b"):
        factor = 1
    elif unit[0] in _POWERS and unit[1:] in ("", "i", "ib"):
        factor = 1024 ** _POWERS[unit[0]]
    elif unit[0] in _POWERS and unit[1:] == "b":
        factor = 1000 ** _POWERS[unit[0]]
    else:
        raise InvalidInput(f"{field}: {match[2][:LONGEST_SHOWN]!r} is not a unit of size", field=field, hint=hint)
    value = number * factor
    if value < 0:
        raise InvalidInput(f"{field}: {str(text)[:LONGEST_SHOWN]} is negative", field=field, hint=hint)
    if not math.isfinite(value) or value > MAX_BYTES:
        raise InvalidInput(f"{field}: {str(text)[:LONGEST_SHOWN]} is more than any machine has", field=field, hint=hint)
    if factor == 1 and number != int(number):
        raise InvalidInput(
            f"{field}: {str(text)[:LONGEST_SHOWN]} is not a whole number of bytes", field=field, hint=hint
        )
    return int(value)


def parse_amount(text: object, field: str = "amount") -> int:
    """A count (``8``) or a size (``16G``), as a whole number. Raises InvalidInput naming ``field``."""
    try:
        return parse_bytes(text, field)
    except InvalidInput as problem:
        raise _bad(text, field, "a count or a size", "write a whole number like 8, or a size like 16G") from problem


def parse_ratio(text: object, field: str = "ratio") -> float:
    """A factor from ``4``, ``1.5`` or ``150%``. Raises InvalidInput naming ``field``."""
    hint = "write a number like 4, 1.5 or 150%, more than 0 and at most 1000"
    match = None if isinstance(text, bool) else re.fullmatch(rf"({_NUMBER})\s*(%?)", str(text).strip())
    if match is None:
        raise _bad(text, field, "a ratio", hint)
    value = float(match[1]) / (100 if match[2] else 1)
    if not 0 < value <= 1000:
        raise InvalidInput(f"{field}: {str(text)[:LONGEST_SHOWN]} is out of range", field=field, hint=hint)
    return round(value, 3)


def parse_share(text: object, field: str = "share") -> float:
    """A part of the whole from ``5%`` or ``0.05``. Raises InvalidInput naming ``field``."""
    hint = "write a share from 0 to 100%, like 5% or 0.05"
    match = None if isinstance(text, bool) else re.fullmatch(rf"({_NUMBER})\s*(%?)", str(text).strip())
    if match is None:
        raise _bad(text, field, "a share", hint)
    value = float(match[1]) / (100 if match[2] else 1)
    if not 0 <= value <= 1:
        raise InvalidInput(f"{field}: {str(text)[:LONGEST_SHOWN]} is out of range", field=field, hint=hint)
    return round(value, 9)


def parse_cpu(text: object, field: str = "cpu") -> float:
    """Cores from ``2``, ``0.5`` or ``500m`` (thousandths). Raises InvalidInput naming ``field``."""
    hint = "write cores like 2, 0.5 or 500m"
    if isinstance(text, bool) or not isinstance(text, (int, float, str)):
        raise _bad(text, field, "a number of cores", hint)
    match = re.fullmatch(rf"({_NUMBER})(m?)", str(text).strip())
    if match is None:
        raise _bad(text, field, "a number of cores", hint)
    value = float(match[1]) / (1000 if match[2] else 1)
    if value <= 0:
        raise InvalidInput(f"{field}: {str(text)[:LONGEST_SHOWN]} must be more than 0", field=field, hint=hint)
    if value > 100_000:
        raise InvalidInput(f"{field}: {str(text)[:LONGEST_SHOWN]} is more than any machine has", field=field, hint=hint)
    return round(value, 3)


def parse_duration(text: object, field: str = "duration") -> float:
    """Seconds from ``90``, ``30s``, ``5m``, ``1h30m``. Raises InvalidInput naming ``field``."""
    hint = "write a duration like 30s, 5m or 1h30m"
    if isinstance(text, bool) or not isinstance(text, (int, float, str)):
        raise _bad(text, field, "a duration", hint)
    stripped = str(text).strip()
    if not stripped.isascii():
        raise _bad(text, field, "a duration", hint)
    try:
        seconds = float(stripped)
    except ValueError:
        parts = list(_DURATION_PART.finditer(stripped))
        if not parts or "".join(p[0] for p in parts) != stripped:
            if stripped.startswith("-"):
                raise InvalidInput(f"{field}: {stripped[:LONGEST_SHOWN]} is negative", field=field, hint=hint) from None
            raise _bad(text, field, "a duration", hint) from None
        seconds = sum(float(p[1]) * _SECONDS[p[2]] for p in parts)
    if not math.isfinite(seconds) or seconds < 0:
        raise InvalidInput(
            f"{field}: {stripped[:LONGEST_SHOWN]} is negative" if seconds < 0 else f"{field}: not finite",
            field=field,
            hint=hint,
        )
    if seconds > 100 * 365 * 86400:
        raise InvalidInput(f"{field}: {stripped[:LONGEST_SHOWN]} is more than a hundred years", field=field, hint=hint)
    return seconds


def parse_period(text: object, field: str = "period") -> float:
    """The same where a text names its unit, as people might mean another: 30 may be days that something is kept, or minutes."""
    seconds = parse_duration(text, field)
    if isinstance(text, str) and seconds and not text.strip()[-1:].isalpha():
        shown = text.strip()[:LONGEST_SHOWN]
        raise InvalidInput(
            f"{field}: {shown} has no unit", field=field, hint=f"write {shown}s, {shown}m, {shown}h or {shown}d"
        )
    return seconds


def parse_moment(text: object, field: str = "time") -> float:
    """Seconds since 1970, to the millisecond, from that number or RFC 3339. Raises InvalidInput naming ``field``."""
    hint = "write it like 2026-12-24T22:00:00Z"
    if isinstance(text, bool) or not isinstance(text, (int, float, str)):
        raise _bad(text, field, "a time", hint)
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(str(text).strip())
        except ValueError:
            raise _bad(text, field, "a time", hint) from None
        if moment.tzinfo is None:
            raise InvalidInput(
                f"{field}: {str(text)[:LONGEST_SHOWN]} has no offset from UTC", field=field, hint=hint
            ) from None
        seconds = moment.timestamp()
    if not 0 <= seconds <= LAST_MOMENT:
        raise InvalidInput(f"{field}: {str(text)[:LONGEST_SHOWN]} is not a valid date", field=field, hint=hint)
    return round(seconds, 3)


def format_moment(seconds: float) -> str:
    """``2026-12-24T22:00:00Z``, in UTC to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_time(moment: float, *, seconds: bool = False) -> str:
    """``2026-12-24 22:00 UTC``, with ``seconds`` ``2026-12-24 22:00:05 UTC``: the form of times in notes, conditions and refusals.
    The command line shows them by the local clock."""
    return datetime.fromtimestamp(moment, UTC).strftime(f"%Y-%m-%d %H:%M{':%S' if seconds else ''} UTC")


def format_duration(seconds: float) -> str:
    """``45s``, ``10m``, ``1h30m``, ``2d``: as people type it, in its two largest units; parts of a second only below ten."""
    if seconds < 10.0:
        return f"{seconds:.3g}s"
    left, parts = round(seconds), list[tuple[int, str]]()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if parts or left >= size:
            parts.append((left // size, unit))
            left %= size
    return "".join(f"{count}{unit}" for count, unit in parts[:2] if count)


def format_limit(seconds: float) -> str:
    """``25h``, ``10m``: a duration as people write a bound, in its largest whole unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:g}s"


def format_cores(cores: float) -> str:
    """``1 core``, ``2.5 cores``"""
    return f"{cores:g} core{'' if cores == 1 else 's'}"


def format_bytes(value: float, digits: int = 1) -> str:
    """``268435456`` → ``256 MiB``; ``digits`` decimals from GiB up, none below."""
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    for unit in ("GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.{digits}f} {unit}"
        size /= 1024
    return f"{size:.{digits}f} PiB"


def format_amount(value: float) -> str:
    """An amount of a node's resource: a count as it is; from 1 MiB on, where it can only be a size, as one."""
    return format_bytes(value) if value >= _LEAST_SIZE else f"{value:g}"


def format_cpu(cores: float) -> str:
    return f"{cores:g}"


def format_age(seconds: float) -> str:
    """The largest unit that fits: ``5s``, ``12m``, ``3h``, ``9d``."""
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f}s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}m"
    if seconds < 172800:
        return f"{seconds / 3600:.0f}h"
    return f"{seconds / 86400:.0f}d"


def sort_key(cell: str) -> SortKey:
    """Key to sort cells by: quantities by how much they are, text as people count (web-9 before web-10), nothing last."""
    if cell in ("", NONE):
        return 2, 0.0, ""
    match = _CELL.fullmatch(cell.strip())
    if match:
        unit = match[2] or ""
        return 0, float(match[1]) * (_SIZES.get(unit) or _SECONDS.get(unit) or 1.0), ""
    parts = _NUMBERS.split(cell.lower())
    for place in range(1, len(parts), 2):  # the numbers: behind letters, and a longer one behind a shorter one
        number = parts[place].lstrip("0")
        parts[place] = f"\xff{chr(min(len(number), 255))}{number}"
    return 1, 0.0, "".join(parts)
