"""How many objects there are of a kind in a project, as a bound that costs a write next to nothing.

What this process commits is added, and what it deletes is taken off; what controllers remove meanwhile is noticed when the objects
are counted again, before a refusal. Requests under way count from their plan on (``hold``): many don't pass together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping


class ObjectCounts:
    """By key: what is counted together."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}  # never less than there are
        self._held: dict[str, int] = {}  # by requests under way
        self._made: dict[str, int] = {}  # by this process, ever

    def find(self, key: str) -> int | None:
        """How many there are at most, with those that requests under way will make; None: nobody has counted yet."""
        known = self._known.get(key)
        return None if known is None else known + self._held.get(key, 0)

    async def read(self, key: str, count: Callable[[], Awaitable[int]]) -> int:
        """As ``find``, counted now."""
        before = self._made.get(key, 0)
        found = await count()
        self._known[key] = (
            found + self._made.get(key, 0) - before
        )  # what was made meanwhile may have been counted, or not
        return self._known[key] + self._held.get(key, 0)

    def hold(self, key: str) -> None:
        """A request under way will make one."""
        self._held[key] = self._held.get(key, 0) + 1

    def release(self, held: Mapping[str, int]) -> None:
        """The request has ended, whatever came of it."""
        for key, count in held.items():
            left = self._held[key] - count
            if left:
                self._held[key] = left
            else:
                del self._held[key]

    def add(self, key: str, count: int) -> None:
        """So many were made; less than 0: deleted."""
        if count > 0:
            self._made[key] = self._made.get(key, 0) + count
        if (known := self._known.get(key)) is not None:
            self._known[key] = max(0, known + count)
