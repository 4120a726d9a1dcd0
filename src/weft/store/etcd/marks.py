"""The marks by which a transaction is done once, however often it is sent: keys that it writes, and that must be as they were.

A commit with an idempotency key has a key of that name, in the folder of its hour. Any other takes a mark that no commit of this
process uses now, and gives it back when it knows how the commit ended; so there are as many as there were commits at
once. The folders of hours long past are deleted.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from weft.contracts.clock import Clock
from weft.store.etcd.connection import EtcdConnection
from weft.store.etcd.leases import end_of
from weft.store.etcd.transaction import is_absent, is_unchanged
from weft.store.limits import KEEP_SECONDS

_NO_KEY = b"\0"  # begins marks that are no idempotency key's
_PAGE_KEYS = 5_000


class Mark:
    """A key that a transaction writes, ``key``. It was done if one of ``keys`` is there, or newer than ``revision``, its newest
    (0: there was none). One that is ``kept`` belongs to an idempotency key."""

    def __init__(self, key: bytes, keys: Sequence[bytes], hour: int, *, kept: bool = False) -> None:
        self.key = key
        self.keys = keys
        self.hour = hour
        self.kept = kept
        self.revision = 0

    def compare(self) -> list[Any]:
        """The comparisons that hold while it isn't done."""
        return [is_unchanged(self.key, self.revision)] if self.revision else [is_absent(key) for key in self.keys]

    def find_done(self, found: Sequence[Any]) -> int | None:
        """The revision at which it was done, by what was read at ``keys``; None if it wasn't."""
        there = [int(kv.mod_revision) for kv in found if kv is not None]
        return there[0] if there and there[0] > self.revision else None

    def is_lost(self, found: Sequence[Any]) -> bool:
        """Whether somebody deleted it or put an older copy of etcd back, by what was read at ``keys``."""
        return self.revision > 0 and not any(kv is not None and kv.mod_revision >= self.revision for kv in found)


class Marks:
    """The marks of this process, under ``folder``."""

    def __init__(self, connection: EtcdConnection, clock: Clock, folder: bytes) -> None:
        self._connection = connection
        self._clock = clock
        self._folder = folder
        self._process = secrets.token_hex(6).encode()
        self._made = 0
        self._free: list[Mark] = []
        self._cleared_until = 0

    async def take(self, idempotency_key: str | None) -> Mark:
        """A mark for one commit. An idempotency key may have been kept in the last hour, this one, or the next, by a clock that is
        ahead."""
        hour = int(self._clock.now() // KEEP_SECONDS)
        if hour > self._cleared_until:
            self._cleared_until = hour
            await self._connection.delete_range(self._folder, self._hour(hour - 1))
        if idempotency_key is not None:
            name = idempotency_key.encode()
            keys = [self._hour(near) + name for near in (hour - 1, hour, hour + 1)]
            return Mark(self._hour(hour) + name, keys, hour, kept=True)
        while self._free:
            mark = self._free.pop()
            if mark.hour == hour:  # others would be deleted soon
                return mark
        self._made += 1
        key = self._hour(hour) + _NO_KEY + b"%s/%d" % (self._process, self._made)
        return Mark(key, [key], hour)

    def give_back(self, mark: Mark, revision: int = 0) -> None:
        """Take it again, which was written at ``revision`` (0: as before): how its commit ended is known."""
        mark.revision = revision or mark.revision
        if not mark.kept:
            self._free.append(mark)

    async def kept_keys(self) -> Sequence[str]:
        """The idempotency keys in all folders."""
        found: list[str] = []
        start = self._folder
        while True:
            page = await self._connection.range(
                key=start, range_end=end_of(self._folder), limit=_PAGE_KEYS, keys_only=True
            )
            names = [kv.key[len(self._folder) :].partition(b"/")[2] for kv in page.kvs]
            found += [name.decode() for name in names if not name.startswith(_NO_KEY)]
            if not page.more:
                return found
            start = page.kvs[-1].key + b"\0"

    def _hour(self, hour: int) -> bytes:
        return _name_hour(self._folder, hour)


def name_kept(folder: bytes, idempotency_key: str, clock: Clock) -> bytes:
    """The key that keeps ``idempotency_key`` from now on."""
    return _name_hour(folder, int(clock.now() // KEEP_SECONDS)) + idempotency_key.encode()


def _name_hour(folder: bytes, hour: int) -> bytes:
    return folder + b"%010d/" % hour
