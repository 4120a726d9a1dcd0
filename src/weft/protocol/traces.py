"""How a node's spans reach the server: ``POST /v1/nodes/{name}:traces``, by the node itself."""

from __future__ import annotations

import msgspec

MOST_SPANS = 2_000  # in one request
MOST_SPAN_BYTES = 8_192


class SpansInput(msgspec.Struct, frozen=True):
    """``offset``: how far the server's clock is ahead of the node's, in seconds, by the midpoint of an earlier request; None:
    the node doesn't know yet, and asks with this one."""

    spans: list[msgspec.Raw] = []
    offset: float | None = None


class SpansAnswer(msgspec.Struct, frozen=True):
    """``now``: the server's clock, in unix seconds; ``refused``: how many spans count as none."""

    now: float
    refused: int = 0
