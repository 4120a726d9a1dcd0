"""A prefix of the store kept in memory: for what every request needs and that seldom changes, such as tokens.

Woken by the store's watch. While the watch is down it says so (``live``), and its reader asks the store instead.
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
_PAUSE_SECONDS = 0.5


class Mirror(Generic[T]):
    """What ``pick`` makes of each object under ``prefix``, by key; objects for which it gives None are left out."""

    def __init__(self, store: Store, prefix: str, pick: Callable[[Envelope], T | None], clock: Clock) -> None:
        self._store = store
        self._prefix = prefix
        self._pick = pick
        self._clock = clock
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
        """The picked value of one object, asked of the store."""
        entry = await self._store.get(key)
        return None if entry is None else self._pick(decode_envelope(entry.value, entry.revision))

    async def _follow(self) -> None:
        page = await self._store.list(self._prefix)
        self.found = {}
        self.changes += 1
        for entry in page.entries:
            self._put(entry.key, entry.value, entry.revision)
        self.live = True
        async with aclosing(self._store.watch(self._prefix, page.cursor)) as batches:
            async for batch in batches:
                for change in batch.changes:
                    self._put(change.key, change.value, batch.revision)

    def _put(self, key: str, value: bytes | None, revision: int) -> None:
        self.changes += 1
        picked = None if value is None else self._pick(decode_envelope(value, revision))
        if picked is None:
            self.found.pop(key, None)
        else:
            self.found[key] = picked
