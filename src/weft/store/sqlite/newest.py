"""The newest entries in memory, as far as they fit: a read of one key then costs no thread and no SQL.

Told of every commit on the loop, before the commit's own caller and the watches are; so what is read here is never older
than what anyone has been told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from weft.contracts.store import Change, Entry

_ENTRY_BYTES = 300  # beside key and value: the objects that hold them


class Newest:
    """Entries by key, None for a key that is known to be absent; those not used for longest go first."""

    def __init__(self, revision: int, max_bytes: int) -> None:
        self._revision = revision
        self._max_bytes = max_bytes
        self._entries: dict[str, Entry | None] = {}
        self._bytes = 0
        self._dropped = 0  # how many were ever dropped
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def mark(self) -> int:
        """Take it before reading what ``learn`` is told afterwards."""
        return self._dropped

    def find(self, key: str) -> Entry | Literal["unknown"] | None:
        """The newest entry, None if there is none."""
        try:
            entry = self._entries.pop(key)
        except KeyError:
            return "unknown"
        self._entries[key] = entry
        return entry

    def publish(self, revision: int, changes: Sequence[Change]) -> None:
        """A commit: its keys are known from now on."""
        self._revision = revision
        for change in changes:
            value = change.value
            self._put(change.key, None if value is None else Entry(change.key, value, revision))
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    def learn(self, key: str, entry: Entry | None, mark: int) -> None:
        """What was read from the file since ``mark``: kept unless a commit may have made it old."""
        if key not in self._entries and mark == self._dropped:
            self._put(key, entry)

    async def reached(self, revision: int) -> None:
        """Return once ``revision`` has been published: the file may be ahead of the loop for a moment."""
        while self._revision < revision:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    def _put(self, key: str, entry: Entry | None) -> None:
        if key in self._entries:
            self._bytes -= _size(key, self._entries.pop(key))
        self._entries[key] = entry
        self._bytes += _size(key, entry)
        while self._bytes > self._max_bytes:
            oldest = next(iter(self._entries))
            self._bytes -= _size(oldest, self._entries.pop(oldest))
            self._dropped += 1


def _size(key: str, entry: Entry | None) -> int:
    return _ENTRY_BYTES + 2 * len(key) + (len(entry.value) if entry is not None else 0)
