"""Sets of small numbers as text: ``0-99`` or ``1,3,7-9``. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from weft.objects.errors import InvalidInput

_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def parse_indexes(text: str, field: str, *, most: int) -> list[int]:
    """The numbers of ``text`` in order, each once. Raises InvalidInput if it can't be read, or has more than ``most``."""
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InvalidInput(
                f"{field}: {part[:40]!r} is neither a number nor a range", field=field, hint="write 0-99 or 1,3,7-9"
            )
        if last - first >= most or len(found) > most:
            raise InvalidInput(f"{field}: too many indexes", field=field, hint=f"at most {most}")
        found.update(range(first, last + 1))
    if len(found) > most:
        raise InvalidInput(f"{field}: {len(found)} is too many", field=field, hint=f"at most {most}")
    return sorted(found)


def format_indexes(indexes: Iterable[int]) -> str:
    """The shortest text for them; "" for none."""
    parts: list[str] = []
    first = last = -2
    for index in sorted(indexes):
        if index == last + 1:
            last = index
            continue
        if last >= 0:
            parts.append(_format(first, last))
        first = last = index
    if last >= 0:
        parts.append(_format(first, last))
    return ",".join(parts)


def read_indexes(text: str) -> list[int]:
    """The indexes in a text of ``format_indexes``."""
    found: list[int] = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def _format(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
