"""Unread output of commands in guests: how much there is, of all guests of a node together.

Each command holds a window of it, however many there are; together they hold no more than ``most`` bytes, and where that is
reached, the guest that holds most of it loses a command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

UNREAD_BYTES = 128 << 20
LONG_ANSWERS = 2


class Unread:
    """Counts bytes by guest and by command, which is known by its ``end``: when the total is too large, the command with the most
    output in the guest with the most is ended so, and drops its output. One that takes something long in one piece needs one of the
    few ``turns``."""

    def __init__(self, most: int = UNREAD_BYTES) -> None:
        self._most, self.total = most, 0
        self.turns = asyncio.Semaphore(LONG_ANSWERS)
        self._held: dict[Hashable, dict[Callable[[], None], int]] = {}

    def take(self, guest: Hashable, end: Callable[[], None], size: int) -> None:
        """Hold ``size`` bytes more (fewer, if negative)."""
        self.total += size
        held = self._held.setdefault(guest, {})
        held[end] = held.get(end, 0) + size
        if not held[end]:
            del held[end]
        if not held:
            del self._held[guest]
        if size > 0 and self.total > self._most:
            largest = max(self._held.values(), key=lambda held: sum(held.values()))
            max(largest, key=largest.__getitem__)()
