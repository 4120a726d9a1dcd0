"""Gangs: workloads of a project that are placed together or not at all. ``NAME:COUNT``. Pure."""

from __future__ import annotations

import re

from weft.objects.errors import InvalidInput

# All of a gang is placed in one commit: an allocation, a decision and a condition each.
MOST = 32
_GANG = re.compile(r"([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?):(\d{1,9})")


def read_gang(text: str, path: str = "spec.gang") -> tuple[str, int]:
    """``web:3`` as name and how many belong to it. Raises InvalidInput."""
    match = _GANG.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"{path}: {text[:80]!r} is not a gang",
            field=path,
            hint="write NAME:COUNT, with the number of members to place together, like web:3",
        )
    count = int(match[2])
    if not 2 <= count <= MOST:
        raise InvalidInput(f"{path}: a gang has 2 to {MOST} members, not {count}", field=path)
    return match[1], count
