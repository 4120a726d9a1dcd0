"""Fills a store that nobody has open with what a backup or another store holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from weft.contracts.store import MAX_COMMIT_BYTES, MAX_WRITES, Delete, Put, Refill, Store, Write, revision_of
from weft.objects.errors import Unavailable

_PAGE_ENTRIES = 1_000
_NOWHERE = "/-/"  # a prefix without keys: a list of it gives only the present cursor


async def fill(target: Refill, entries: Iterable[tuple[str, bytes]], revision: int) -> None:
    """Put ``entries``, of a history that reached ``revision``, in the place of all that ``target`` holds. Raises what it raises,
    and whatever ``entries`` raises."""
    try:
        await target.begin(revision)
        for bite in in_bites(entries):
            await target.apply(bite)
        await target.finish(revision)
    finally:
        await target.close()


def in_bites(entries: Iterable[tuple[str, bytes]]) -> Iterator[list[Put]]:
    """The entries in lists that a commit may hold."""
    bite: list[Put] = []
    size = 0
    for key, value in entries:
        if bite and (len(bite) == MAX_WRITES or size + len(value) > MAX_COMMIT_BYTES):
            yield bite
            bite, size = [], 0
        bite.append(Put(key, value))
        size += len(value)
    if bite:
        yield bite


class StoreCopy:
    """A copy of ``source`` in ``target``, brought up to date by reading all of the source again and bringing what differs.

    ``objects``, ``size_bytes``, ``revision`` and ``digest``, that of all keys and values, are of the source's newest reading."""

    def __init__(self, source: Store, target: Refill) -> None:
        self._source, self._target = source, target
        self._brought: dict[str, bytes] = {}  # digests of values, by key
        self._kept: set[str] = set()  # idempotency keys
        self.objects = self.size_bytes = self.revision = 0
        self.digest = ""

    async def begin(self, note: str) -> None:
        """Begin with nothing in the target. Raises what its ``begin`` raises."""
        self.revision = revision_of((await self._source.list(_NOWHERE, limit=1)).cursor)
        await self._target.begin(self.revision, note)

    async def catch_up(self, show: Callable[[int], None] = lambda _: None) -> int:
        """Bring all that differs at one instant of the source, and its newer idempotency keys; returns how many objects that were.
        ``show`` gets how many were read so far. Raises what either store raises."""
        bite: list[Write] = []
        gone = set(self._brought)
        whole, count, size, bite_bytes = hashlib.sha256(), 0, 0, 0
        self.objects, after = 0, None
        while True:
            page = await self._source.list("", limit=_PAGE_ENTRIES, after=after)
            for entry in page.entries:
                _add(whole, entry.key, entry.value)
                size += len(entry.value)
                gone.discard(entry.key)
                digest = hashlib.blake2b(entry.value, digest_size=16).digest()
                if self._brought.get(entry.key) == digest:
                    continue
                if len(bite) == MAX_WRITES or bite_bytes + len(entry.value) > MAX_COMMIT_BYTES:
                    await self._target.apply(bite)
                    bite, bite_bytes = [], 0
                bite.append(Put(entry.key, entry.value))
                bite_bytes += len(entry.value)
                self._brought[entry.key] = digest
                count += 1
            self.objects += len(page.entries)
            show(self.objects)
            after = page.next
            if after is None:
                break
        await self._target.apply(bite)
        left = sorted(gone)
        for start in range(0, len(left), MAX_WRITES):
            await self._target.apply([Delete(key) for key in left[start : start + MAX_WRITES]])
        for key in left:
            del self._brought[key]
        fresh = set(await self._source.kept_keys()) - self._kept
        await self._target.keep(sorted(fresh))
        self._kept |= fresh
        self.size_bytes, self.digest, self.revision = size, whole.hexdigest(), revision_of(page.cursor)
        return count + len(left)

    async def finish(self) -> None:
        """Make the target a store, if it holds what the source held at its newest reading. Raises Unavailable if it doesn't."""
        found = hashlib.sha256()
        async with aclosing(self._target.read()) as pages:
            async for page in pages:
                for key, value in page:
                    _add(found, key, value)
        if found.hexdigest() != self.digest:
            raise Unavailable(
                "the copy is not equal to the original", hint="nothing was changed; look after the target's disk"
            )
        await self._target.finish(self.revision)


def _add(digest: Any, key: str, value: bytes) -> None:
    name = key.encode()
    digest.update(b"%d %d " % (len(name), len(value)) + name + value)
