"""Fills a store that nobody has open with what a backup or another store holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weft.contracts.store import MAX_COMMIT_BYTES, MAX_WRITES, Put, Refill


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
