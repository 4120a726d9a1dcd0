"""Watches: from the log until the present is reached, then from commits as they happen; no gap, no repeat.

The engine calls ``publish`` for every commit, in order, on the loop. Watchers are indexed by prefix, so a commit costs
what it matches, however many watch something else. A watcher that reads more slowly than its bounded queue fills is
sent back to the log, which blocks nobody and loses nothing; only when the log has forgotten its place does it get
Compacted.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from weft.contracts.store import Batch, Change
from weft.objects.errors import StoreUnavailable
from weft.store.cursors import format_cursor, parse_cursor
from weft.store.limits import check_prefix, end_of_prefix

# From ``position`` up to and including ``until``: the batches under a prefix, and how far they reach. An engine may
# stop early (whole revisions only). Raises Compacted if ``position`` is older than the log or ahead of the store.
Replay = Callable[[str, int, int], Awaitable[tuple[list[Batch], int]]]

_CLOSE_BEHIND_REVISIONS = 1_000


class Watches:
    def __init__(
        self,
        epoch: str,
        revision: int,
        replay: Replay,
        *,
        max_batches: int = 10_000,
        max_bytes: int = 32_000_000,
        recent_bytes: int = 0,
    ) -> None:
        self._epoch = epoch
        self._revision = revision  # the newest that was published
        self._replay = replay
        self._max_batches = max_batches
        self._max_bytes = max_bytes
        self._recent = _Recent(revision, recent_bytes)
        self._by_prefix: dict[str, set[_Watcher]] = {}
        self._lengths: dict[int, int] = {}  # prefix length → how many distinct prefixes have it
        self._closed = False

    def publish(self, revision: int, changes: Sequence[Change]) -> None:
        """Hand one commit to every watcher it concerns; never waits."""
        self._revision = revision
        self._recent.add(revision, changes)
        matched: dict[str, list[Change]] = {}
        for change in changes:
            key = change.key
            for length in self._lengths:
                prefix = key[:length]
                if prefix in self._by_prefix and len(prefix) == length:
                    matched.setdefault(prefix, []).append(change)
        if not matched:
            return
        cursor = format_cursor(self._epoch, revision)
        for prefix, concerned in matched.items():
            batch = Batch(revision, cursor, concerned)
            size = sum(_size(change) for change in concerned)
            fallen_behind = [w for w in self._by_prefix[prefix] if not w.offer(batch, size)]
            for watcher in fallen_behind:
                self._leave(watcher)

    def forget(self, compacted: int) -> None:
        """History up to revision ``compacted`` is gone for new watchers."""
        self._recent.forget(compacted)

    async def follow(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        """Every commit after ``cursor`` under ``prefix``; the body of an engine's ``watch``."""
        self._check_open()
        check_prefix(prefix)
        position = parse_cursor(cursor, self._epoch)
        while True:
            while True:
                batches, position = await self._read(prefix, position, max(position, self._revision))
                for batch in batches:
                    yield batch
                batches.clear()  # a watch lasts long: it must not keep what it has delivered
                if self._revision - position < _CLOSE_BEHIND_REVISIONS:
                    break
            # Join first, then replay up to the present: what comes after is in the queue.
            watcher = self._join(prefix)
            try:
                present = self._revision
                while position < present:
                    batches, position = await self._read(prefix, position, present)
                    for batch in batches:
                        yield batch
                    batches.clear()
                while (live := await watcher.take()) is not None:
                    if live.revision > position:
                        position = live.revision
                        yield live
                position = max(position, watcher.resume_at)
            finally:
                self._leave(watcher)

    def close(self) -> None:
        """End every watch with StoreUnavailable once what is queued has been read."""
        self._closed = True
        for watchers in self._by_prefix.values():
            for watcher in watchers:
                watcher.close()

    async def _read(self, prefix: str, position: int, until: int) -> tuple[list[Batch], int]:
        """Read the engine's replay; from memory if it is recent enough, as it mostly is after a list."""
        found = self._recent.find(prefix, position, until) if until <= self._revision else None
        if found is None:
            return await self._replay(prefix, position, until)
        return [Batch(revision, format_cursor(self._epoch, revision), changes) for revision, changes in found], until

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed", hint="watch again from the last cursor")

    def _join(self, prefix: str) -> _Watcher:
        self._check_open()
        watcher = _Watcher(prefix, self._max_batches, self._max_bytes)
        watchers = self._by_prefix.get(prefix)
        if watchers is None:
            watchers = self._by_prefix[prefix] = set()
            self._lengths[len(prefix)] = self._lengths.get(len(prefix), 0) + 1
        watchers.add(watcher)
        return watcher

    def _leave(self, watcher: _Watcher) -> None:
        watchers = self._by_prefix.get(watcher.prefix)
        if watchers is None or watcher not in watchers:
            return
        watchers.remove(watcher)
        if not watchers:
            del self._by_prefix[watcher.prefix]
            length = len(watcher.prefix)
            self._lengths[length] -= 1
            if not self._lengths[length]:
                del self._lengths[length]


class _Recent:
    """The newest commits, up to ``max_bytes`` of them: thousands who list and then watch ask for the same few.

    Found by commit where few are newer, else by key: of a thousand nodes that return at once, each wants its own few keys
    out of what all of them have changed."""

    def __init__(self, revision: int, max_bytes: int) -> None:
        self._whole_after = revision  # every later commit is here
        self._max_bytes = max_bytes
        self._commits: deque[tuple[int, Sequence[Change], int]] = deque()
        self._by_key: dict[str, list[tuple[int, int, Change]]] = {}  # revision, place in its commit, change
        self._keys: list[str] = []  # sorted
        self._bytes = 0

    def add(self, revision: int, changes: Sequence[Change]) -> None:
        if not self._max_bytes:
            return
        size = sum(map(_size, changes))
        self._commits.append((revision, changes, size))
        for place, change in enumerate(changes):
            if change.key not in self._by_key:
                self._by_key[change.key] = []
                bisect.insort(self._keys, change.key)
            self._by_key[change.key].append((revision, place, change))
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._drop()

    def forget(self, revision: int) -> None:
        self._whole_after = max(self._whole_after, revision)
        while self._commits and self._commits[0][0] <= revision:
            self._drop()

    def find(self, prefix: str, position: int, until: int) -> list[tuple[int, list[Change]]] | None:
        """Revisions after ``position`` up to ``until`` and what they changed under ``prefix``; None if some of them are
        not here."""
        if not self._whole_after <= position <= until or not self._max_bytes:
            return None
        first, end_key = bisect.bisect_left(self._keys, prefix), end_of_prefix(prefix)
        end = bisect.bisect_left(self._keys, end_key) if end_key is not None else len(self._keys)
        found: list[tuple[int, list[Change]]] = []
        read = 0
        for revision, changes, _ in reversed(self._commits):
            if revision <= position:
                break
            if read > end - first:
                return self._find_by_key(self._keys[first:end], position, until)
            concerned = [change for change in changes if change.key.startswith(prefix)]
            if concerned and revision <= until:
                found.append((revision, concerned))
            read += len(changes)
        found.reverse()
        return found

    def _find_by_key(self, keys: Sequence[str], position: int, until: int) -> list[tuple[int, list[Change]]]:
        found = list[tuple[int, int, Change]]()
        for key in keys:
            for entry in reversed(self._by_key[key]):
                if entry[0] <= position:
                    break
                if entry[0] <= until:
                    found.append(entry)
        by_revision: dict[int, list[Change]] = {}
        for revision, _, change in sorted(found, key=lambda entry: entry[:2]):
            by_revision.setdefault(revision, []).append(change)
        return list(by_revision.items())

    def _drop(self) -> None:
        revision, changes, size = self._commits.popleft()
        for change in changes:
            entries = self._by_key[change.key]
            del entries[0]
            if not entries:
                del self._by_key[change.key]
                del self._keys[bisect.bisect_left(self._keys, change.key)]
        self._bytes -= size
        self._whole_after = max(self._whole_after, revision)


class _Watcher:
    """One bounded queue. Once it has overflowed it is empty and says where in the log to go on."""

    def __init__(self, prefix: str, max_batches: int, max_bytes: int) -> None:
        self.prefix = prefix
        self.resume_at = 0
        self._max_batches = max_batches
        self._max_bytes = max_bytes
        self._queue: deque[tuple[Batch, int]] = deque()
        self._bytes = 0
        self._overflowed = False
        self._closed = False
        self._ready = asyncio.Event()

    def offer(self, batch: Batch, size: int) -> bool:
        """False when the queue was full: it is given up and the reader must go back to the log."""
        if self._queue and (len(self._queue) >= self._max_batches or self._bytes + size > self._max_bytes):
            # Nothing under the prefix lies between what was delivered and the first batch that waits here.
            self.resume_at = self._queue[0][0].revision - 1
            self._queue.clear()
            self._overflowed = True
            self._ready.set()
            return False
        self._queue.append((batch, size))
        self._bytes += size
        self._ready.set()
        return True

    async def take(self) -> Batch | None:
        """The next batch; None after an overflow; raises StoreUnavailable when the store has closed."""
        while not self._queue:
            if self._overflowed:
                return None
            if self._closed:
                raise StoreUnavailable("the store closed", hint="watch again from the last cursor")
            self._ready.clear()
            await self._ready.wait()
        batch, size = self._queue.popleft()
        self._bytes -= size
        return batch

    def close(self) -> None:
        self._closed = True
        self._ready.set()


def _size(change: Change) -> int:
    return len(change.key) + len(change.value or b"") + len(change.previous or b"")
