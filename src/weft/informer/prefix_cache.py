"""A prefix of the store in memory: for objects that every request needs and that seldom change, such as tokens.

Woken by the store's watch. While the watch is down ``live`` is False, and its reader asks the store instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Generic, TypeVar

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.errors import WeftError

T = TypeVar("T")
Pick = Callable[[bytes, int], T | None]
_PAUSE_SECONDS = 0.5


def of_envelope(pick: Callable[[Envelope], T | None]) -> Pick[T]:
    """``pick`` for what is stored as an object."""
    return lambda value, revision: pick(decode_envelope(value, revision))


class PrefixCache(Generic[T]):
    """Results of ``pick`` for each value under ``prefix`` and its revision, by key; values for which it gives None are left out.
    ``on_change`` gets each key whose value changed."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        pick: Pick[T],
        clock: Clock,
        on_change: Callable[[str], None] = lambda key: None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._pick = pick
        self._clock = clock
        self._on_change = on_change
        self._ahead: dict[str, int] = {}  # revisions of noted values that the watch hasn't brought yet
        self.found: dict[str, T] = {}
        self.live = False
        self.changes = 0  # grows with every change of ``found``

    async def run(self) -> None:
        """Follow the store until cancelled."""
        while True:
            with suppress(WeftError):
                await self._follow()
            self.live = False
            await self._clock.sleep(_PAUSE_SECONDS)

    async def read(self, key: str) -> T | None:
        """The picked value of one key, read from the store."""
        entry = await self._store.get(key)
        return None if entry is None else self._pick(entry.value, entry.revision)

    async def read_all(self) -> dict[str, T]:
        """The picked values of all keys, read from the store."""
        page = await self._store.list(self._prefix)
        picked = {entry.key: self._pick(entry.value, entry.revision) for entry in page.entries}
        return {key: value for key, value in picked.items() if value is not None}

    async def find(self, key: str) -> T | None:
        """The picked value of one key, read from the store only if it isn't here."""
        known = self.found.get(key) if self.live else None
        return known or await self.read(key)

    def note(self, key: str, value: bytes | None, revision: int) -> None:
        """This process has committed ``value`` (None: a deletion): it counts from now on, before the watch brings it."""
        self._ahead[key] = revision
        self._take(key, value, revision)

    def forget(self, key: str, revision: int) -> None:
        """This process has deleted what was at ``key``, which may be none of these."""
        if key.startswith(self._prefix):
            self.note(key, None, revision)

    async def read_again(self, key: str) -> bool:
        """Read one value from the store into the copy; whether it was another one here."""
        entry = await self._store.get(key)
        if entry is None or self._pick(entry.value, entry.revision) == self.found.get(key):
            return False
        self.note(key, entry.value, entry.revision)
        return True

    async def _follow(self) -> None:
        page = await self._store.list(self._prefix)
        before, self.found = self.found, {key: self.found[key] for key in self._ahead if key in self.found}
        self.changes += 1
        for entry in page.entries:
            self._put(entry.key, entry.value, entry.revision)
        self.live = True
        for key in before.keys() - self.found.keys():
            self._on_change(key)
        async with aclosing(self._store.watch(self._prefix, page.cursor)) as batches:
            async for batch in batches:
                for change in batch.changes:
                    self._put(change.key, change.value, batch.revision)

    def _put(self, key: str, value: bytes | None, revision: int) -> None:
        if revision >= self._ahead.get(key, 0):
            self._ahead.pop(key, None)
            self._take(key, value, revision)

    def _take(self, key: str, value: bytes | None, revision: int) -> None:
        self.changes += 1
        picked = None if value is None else self._pick(value, revision)
        if picked is None:
            self.found.pop(key, None)
        else:
            self.found[key] = picked
        self._on_change(key)
