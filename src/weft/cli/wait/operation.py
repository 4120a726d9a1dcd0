"""The ids of operations, as people type them. Pure."""

from __future__ import annotations

import re

from weft.cli.command.target import Target
from weft.kinds.registry import find_kind
from weft.objects.errors import InvalidInput

_ID = re.compile(r"([^/@]+)/([^/@]+)(?:@(\d+))?")


def read_id(text: str) -> tuple[Target, int | None]:
    """The object of an operation, and the generation, if its id has one. Raises InvalidInput, NotFound for an unknown kind."""
    match = _ID.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"{text[:80]!r} is not an operation",
            field="id",
            hint="write KIND/NAME@GENERATION: weft operation list shows them",
        )
    return Target(find_kind(match[1]), match[2]), int(match[3]) if match[3] else None
