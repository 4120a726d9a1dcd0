"""The store in memory: the contract without a disk, for tests and for what may be lost with the process.

It keeps the newest value of each key, a sorted list of keys, and a log of changes that watches replay and pinned lists
roll back. Every call is done when it returns; nothing here waits.
"""

from __future__ import annotations

import builtins
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.store import Batch, Change, Delete, Entry, Lease, Page, Precondition, Write
from weft.objects.errors import StoreUnavailable
from weft.store.cursors import check_reach, format_continuation, format_cursor, make_epoch, parse_continuation
from weft.store.leases import LeaseTable
from weft.store.limits import (
    KEEP_SECONDS,
    check_commit,
    check_key,
    check_limit,
    check_prefix,
    end_of_prefix,
    find_failed,
)
from weft.store.watches import Watches

_REPLAY_REVISIONS = 2_000


class _Logged(NamedTuple):
    """One revision: its changes, and for each the entry it replaced."""

    changes: list[Change]
    replaced: list[Entry | None]


class MemoryStore:
    """A store that lives and dies with the process. Remembers at least ``keep_revisions`` revisions of history."""

    def __init__(self, clock: Clock | None = None, *, keep_revisions: int = 100_000) -> None:
        self._clock = clock or SystemClock()
        self._keep_revisions = keep_revisions
        self._epoch = make_epoch()
        self._entries: dict[str, Entry] = {}
        self._keys: builtins.list[str] = []  # sorted
        self._log: builtins.list[_Logged] = []  # of revisions compacted + 1 … revision
        self._compacted = 0
        self._revision = 0
        self._recent: dict[str, int] = {}  # idempotency keys of this hour, and of the hour before
        self._older: dict[str, int] = {}
        self._turned_at = self._clock.elapsed()
        self._leases = LeaseTable(self._clock)
        self._watches = Watches(self._epoch, 0, self._replay)
        self._closed = False

    async def open(self) -> None:
        """Nothing to do: memory is always there."""

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        self._check_open()
        check_commit(writes, preconditions, idempotency_key)
        first = self._first_revision(idempotency_key)
        if first is not None:
            return first
        failed = find_failed(preconditions, self._revision_of, self._leases.holds)
        if failed is not None:
            raise failed
        revision = self._apply(writes)
        if idempotency_key is not None:
            self._recent[idempotency_key] = revision
        return revision

    async def get(self, key: str) -> Entry | None:
        self._check_open()
        check_key(key)
        return self._entries.get(key)

    async def list(self, prefix: str, *, limit: int = 0, after: str | None = None) -> Page:
        self._check_open()
        check_prefix(prefix)
        check_limit(limit)
        if after is None:
            pinned, last_key = self._revision, None
        else:
            pinned, last_key = parse_continuation(after, self._epoch, prefix)
            check_reach(pinned, self._compacted, self._revision)
        entries = self._found_at(pinned, prefix, last_key, limit + 1 if limit else None)
        follow = None
        if limit and len(entries) > limit:
            del entries[limit:]
            follow = format_continuation(self._epoch, pinned, entries[-1].key)
        return Page(entries, format_cursor(self._epoch, pinned), follow)

    async def count(self, prefix: str) -> int:
        self._check_open()
        check_prefix(prefix)
        start, stop = self._reach(prefix)
        return stop - start

    def watch(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        return self._watches.follow(prefix, cursor)

    async def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Lease | None:
        self._check_open()
        return self._leases.grant(name, holder, ttl_seconds, digest)

    async def release(self, name: str, holder: str) -> None:
        self._leases.release(name, holder)

    async def leases(self, prefix: str, *, digests: bool = False) -> Sequence[Lease]:
        self._check_open()
        return self._leases.live(prefix, digests=digests)

    async def kept_keys(self) -> Sequence[str]:
        self._check_open()
        return [*self._recent, *self._older]

    async def compact(self, keep_revisions: int) -> None:
        self._check_open()
        self._forget(max(self._compacted, self._revision - max(0, keep_revisions)))

    async def close(self) -> None:
        self._closed = True
        self._watches.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _revision_of(self, key: str) -> int | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.revision

    def _first_revision(self, idempotency_key: str | None) -> int | None:
        now = self._clock.elapsed()
        if now - self._turned_at >= KEEP_SECONDS:
            # a key is dropped at the second turn after it came: after one hour at least, two at most
            still_kept = now - self._turned_at < 2 * KEEP_SECONDS
            self._older = self._recent if still_kept else {}
            self._recent = {}
            self._turned_at = now
        if idempotency_key is None:
            return None
        return self._recent.get(idempotency_key, self._older.get(idempotency_key))

    def _apply(self, writes: Sequence[Write]) -> int:
        revision = self._revision + 1
        logged = _Logged([], [])
        for write in writes:
            replaced = self._entries.get(write.key)
            if isinstance(write, Delete):
                if replaced is None:
                    continue
                del self._entries[write.key]
                del self._keys[bisect_left(self._keys, write.key)]
                value = None
            else:
                value = bytes(write.value)
                if replaced is None:
                    insort(self._keys, write.key)
                self._entries[write.key] = Entry(write.key, value, revision)
            logged.changes.append(Change(write.key, value, None if replaced is None else replaced.value))
            logged.replaced.append(replaced)
        if not logged.changes:
            return self._revision
        self._revision = revision
        self._log.append(logged)
        if len(self._log) > self._keep_revisions + self._keep_revisions // 10:
            self._forget(revision - self._keep_revisions)
        self._watches.publish(revision, logged.changes)
        return revision

    def _forget(self, compacted: int) -> None:
        del self._log[: compacted - self._compacted]
        self._compacted = compacted

    def _reach(self, prefix: str) -> tuple[int, int]:
        """Start and end in the sorted keys of those under ``prefix``."""
        end = end_of_prefix(prefix)
        return bisect_left(self._keys, prefix), len(self._keys) if end is None else bisect_left(self._keys, end)

    def _found_at(self, pinned: int, prefix: str, last_key: str | None, most: int | None) -> builtins.list[Entry]:
        """Entries under ``prefix`` after ``last_key`` as they were at revision ``pinned``, in key order."""
        start, stop = self._reach(prefix)
        if last_key is not None:
            start = bisect_right(self._keys, last_key)
        if pinned == self._revision:
            if most is not None:
                stop = min(stop, start + most)
            return [self._entries[key] for key in self._keys[start:stop]]
        then = {key: self._entries[key] for key in self._keys[start:stop]}
        for logged in reversed(self._log[pinned - self._compacted :]):
            for change, replaced in zip(logged.changes, logged.replaced, strict=True):
                if not change.key.startswith(prefix) or (last_key is not None and change.key <= last_key):
                    continue
                if replaced is None:
                    then.pop(change.key, None)
                else:
                    then[change.key] = replaced
        return [then[key] for key in sorted(then)[:most]]

    async def _replay(self, prefix: str, position: int, until: int) -> tuple[builtins.list[Batch], int]:
        check_reach(position, self._compacted, self._revision)
        reached = min(until, position + _REPLAY_REVISIONS)
        batches = []
        for revision in range(position + 1, reached + 1):
            logged = self._log[revision - self._compacted - 1]
            changes = [change for change in logged.changes if change.key.startswith(prefix)]
            if changes:
                batches.append(Batch(revision, format_cursor(self._epoch, revision), changes))
        return batches, reached
