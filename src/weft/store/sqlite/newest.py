"""The newest entries in memory, as far as they fit: a read of one key then costs no thread and no SQL.

It gets every commit on the loop, before the commit's own caller and the watches do; so a read here is never older than what any
of them has seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from weft.contracts.store import Change, Entry
from weft.store.sqlite.bounded import Bounded


class Newest:
    """Entries by key, None for a key that is known to be absent; those not used for longest go first."""

    def __init__(self, revision: int, max_bytes: int) -> None:
        self._revision = revision
        self._entries = Bounded[Entry | None](max_bytes)
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def mark(self) -> int:
        """Take it before the read whose result ``learn`` gets."""
        return self._entries.dropped

    def find(self, key: str) -> Entry | Literal["unknown"] | None:
        """The newest entry, None if there is none."""
        return self._entries.find(key, "unknown")

    def publish(self, revision: int, changes: Sequence[Change]) -> None:
        """A commit: its keys are known from now on."""
        self._revision = revision
        put = self._entries.put
        for change in changes:
            value = change.value
            if value is None:
                put(change.key, None, 0)
            else:
                put(change.key, Entry(change.key, value, revision), len(value))
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def learn(self, key: str, entry: Entry | None, mark: int) -> None:
        """Keep what was read from the file since ``mark``, unless a commit may have made it old."""
        if key not in self._entries and mark == self.mark:
            self._entries.put(key, entry, 0 if entry is None else len(entry.value))

    async def reached(self, revision: int) -> None:
        """Return once ``revision`` has been published: the file may be ahead of the loop for a moment."""
        while self._revision < revision:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
