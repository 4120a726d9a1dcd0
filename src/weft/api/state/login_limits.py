"""How often logins may fail, per client's address and per user, and how many passwords are hashed at once.

A key has a bucket of tries that fills again over time; a try that succeeds is given back. The tables are bounded: those who haven't
failed for longest are forgotten first."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TypeVar

from weft.objects.errors import Throttled, Unavailable

T = TypeVar("T")
MOST_KEPT = 10_000
USER_TRIES, USER_SECONDS = 10, 6.0  # failures in a row, and the time after which there is one try more
ADDRESS_TRIES, ADDRESS_SECONDS = 30, 2.0  # a whole class may share an address
MOST_AT_ONCE = 2  # hashes: each takes a core and 64 MiB
MOST_WAITING = 64


class Tries:
    """Failures by key: the time (seconds, of any clock) at which all tries of a key are back."""

    def __init__(self, tries: int, seconds: float, most: int = MOST_KEPT) -> None:
        self._tries, self._seconds, self._most = tries, seconds, most
        self._full_at: dict[str, float] = {}

    def find_wait(self, key: str, now: float, count: int = 1) -> float:
        """Seconds until ``key`` has ``count`` tries; 0 if it has them now."""
        return max(0.0, self._full_at.get(key, now) - now - (self._tries - count) * self._seconds)

    def take(self, key: str, now: float, count: int = 1) -> None:
        """Take tries."""
        full_at = max(self._full_at.pop(key, now), now) + self._seconds * count
        while len(self._full_at) >= self._most:
            del self._full_at[next(iter(self._full_at))]
        self._full_at[key] = full_at

    def give_back(self, key: str) -> None:
        """A try that was taken has succeeded."""
        if key in self._full_at:
            self._full_at[key] -= self._seconds


class LoginLimits:
    def __init__(self) -> None:
        self._users = Tries(USER_TRIES, USER_SECONDS)
        self._addresses = Tries(ADDRESS_TRIES, ADDRESS_SECONDS)
        self._hashing = asyncio.Semaphore(MOST_AT_ONCE)
        self._waiting = 0

    def take(self, user: str, address: str, now: float) -> None:
        """Begin a try. Raises Throttled if ``user`` or ``address`` had too many failures."""
        wait = max(self._users.find_wait(user, now), self._addresses.find_wait(address, now))
        if wait > 0:
            raise Throttled(
                "too many logins failed", hint=f"try again in {math.ceil(wait)} s", retry_after_seconds=math.ceil(wait)
            )
        self._users.take(user, now)
        self._addresses.take(address, now)

    def give_back(self, user: str, address: str) -> None:
        """The try has succeeded."""
        self._users.give_back(user)
        self._addresses.give_back(address)

    async def hash(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which hashes a password, in a thread. Raises Unavailable while too many wait for it."""
        if self._waiting >= MOST_WAITING:
            raise Unavailable("too many people log in just now", hint="try again", retry_after_seconds=2)
        self._waiting += 1
        try:
            async with self._hashing:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1
