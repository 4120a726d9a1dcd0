"""How an answer names servers whose part of it is missing: in a header, for the command line, and in a field of its body. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.client.server.endpoints import AWAY_HEADER

AWAY: dict[str, Any] = {
    "type": "array",
    "items": {"type": "string"},
    "description": "servers of the fabric that don't answer: what only they have is missing",
}


def name_away(servers: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The header that names them; none if all have answered."""
    return ((AWAY_HEADER, ",".join(servers)),) if servers else ()
