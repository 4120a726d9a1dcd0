"""The journal contract: what happened, for people. Events are kept apart from objects, folded, and forgotten in time."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from weft.objects.identity import Ref


class Event(msgspec.Struct, frozen=True):
    """One thing that happened to ``object``; ``reason`` is a stable CamelCase word, ``source`` the part that says it."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    object: Ref
    source: str
    node_uid: str = ""  # where what it printed is kept, of a workload that is gone
    at: float | None = None  # when it happened, in unix seconds; None: now


class Journal(Protocol):
    def append(self, event: Event) -> None:
        """Keep ``event``; the same one again, soon after, only counts. Never waits for the disk."""
