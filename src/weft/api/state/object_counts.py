"""How many objects there are of a kind in a project, as a bound that costs a write next to nothing.

What people make here is added. What is deleted, and what controllers and other API servers make, is noticed when the objects are
counted again: before a refusal, and, if somebody makes one, once a minute and whenever a quarter of what was left, or a fiftieth of
what is allowed, were made here. So each further API server adds that many at most. Requests under way count from their plan on
(``hold``): many don't pass together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

KEPT_SECONDS = 60.0
MOST_UNSEEN = 64  # or a fiftieth of what is allowed, if that is more: a count takes longer, the more there are


class ObjectCounts:
    """Counts by key of what is counted together. Times are in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._counted: dict[str, int] = {}  # ``_known`` when they were counted last
        self._read_at: dict[str, float] = {}
        self._held: dict[str, int] = {}  # by requests under way
        self._made: dict[str, int] = {}  # by requests, ever

    def find(self, key: str, now: float, most: int) -> int | None:
        """How many there are, with those that requests under way will make; None: they must be counted again, as ``most`` are
        allowed."""
        if now - self._read_at.get(key, -KEPT_SECONDS) >= KEPT_SECONDS:
            return None
        found, counted = self._known[key] + self._held.get(key, 0), self._counted[key]
        unseen = min(max(MOST_UNSEEN, most // 50), (most - counted) // 4)
        return found if found - counted < unseen else None

    async def read(self, key: str, now: float, count: Callable[[], Awaitable[int]]) -> int:
        """Count as ``find`` does, but now."""
        before = self._made.get(key, 0)
        found = await count()
        self._known[key] = (
            found + self._made.get(key, 0) - before
        )  # what was made meanwhile may have been counted, or not
        self._counted[key] = self._known[key]
        self._read_at[key] = now
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

    def add(self, key: str) -> None:
        """One was made."""
        self._made[key] = self._made.get(key, 0) + 1
        self._known[key] = self._known.get(key, 0) + 1
