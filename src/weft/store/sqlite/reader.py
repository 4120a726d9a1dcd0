"""Reading, off the loop: a few threads, each with its own connection, so that a long list delays nobody.

Every function reads one instant: what it returns was true together.
"""

from __future__ import annotations

import asyncio
import heapq
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

from weft.contracts.store import Batch, Change, Entry, Page
from weft.objects.errors import StoreUnavailable
from weft.store.cursors import check_reach, format_continuation, format_cursor, parse_continuation
from weft.store.limits import end_of_prefix
from weft.store.sqlite.file import as_store_error, connect_reader
from weft.store.sqlite.schema import end_of, revision_at

T = TypeVar("T")

_REPLAY_ROWS = 2_000
_REPLAY_BYTES = 8_000_000
_LAST_POSSIBLE_KEY = "\U0010ffff"


class Readers:
    """``count`` threads that read. Connections are opened when first needed."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="store-reader")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    async def run(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """``read`` with a connection, in a thread; raises StoreUnavailable when the file can't be read."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, read)
        except RuntimeError as closed:
            raise StoreUnavailable("the store is closed") from closed

    async def stop(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        for connection in self._connections:
            connection.close()

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = connect_reader(self._path)
                self._connections.append(connection)
            return read(connection)
        except sqlite3.Error as problem:
            raise as_store_error(problem, self._path) from problem


def read_entry(connection: sqlite3.Connection, key: str) -> tuple[Entry | None, int]:
    """The entry of ``key``, and the store's revision then."""
    # One statement sees one instant. Around several, each gives the interpreter up and waits for it.
    revision, value, position = connection.execute(
        "SELECT state.revision, version.value, version.position FROM state LEFT JOIN latest ON latest.key = ?"
        " LEFT JOIN version ON version.position = latest.position WHERE state.id = 1",
        (key,),
    ).fetchone()
    return None if position is None else Entry(key, value, revision_at(position)), revision


def read_page(connection: sqlite3.Connection, epoch: str, prefix: str, limit: int, after: str | None) -> Page:
    """The contract's ``list``. A continued list costs what it returns plus what has changed since it began."""
    with _one_instant(connection):
        revision, compacted = _read_reach(connection)
        pinned, last_key = revision, None
        if after is not None:
            pinned, last_key = parse_continuation(after, epoch, prefix)
            check_reach(pinned, compacted, revision)
        start = prefix if last_key is None else last_key + "\0"
        keys = (start, end_of_prefix(prefix) or _LAST_POSSIBLE_KEY)
        most = limit + 1 if limit else -1
        rows: Iterator[tuple[str, int, bytes]] = connection.execute(
            "SELECT latest.key, position, version.value FROM latest JOIN version USING (position)"
            " WHERE latest.key >= ? AND latest.key < ? AND position <= ? ORDER BY latest.key LIMIT ?",
            (*keys, end_of(pinned), most),
        )
        if pinned < revision:
            rows = heapq.merge(rows, _read_replaced(connection, keys, pinned, most))
        rows = islice(rows, limit + 1) if limit else rows
        entries = [Entry(key, value, revision_at(position)) for key, position, value in rows]
    follow = None
    if limit and len(entries) > limit:
        del entries[limit:]
        follow = format_continuation(epoch, pinned, entries[-1].key)
    return Page(entries, format_cursor(epoch, pinned), follow)


def count_keys(connection: sqlite3.Connection, prefix: str) -> int:
    """The contract's ``count``: reads no values."""
    keys = (prefix, end_of_prefix(prefix) or _LAST_POSSIBLE_KEY)
    found = connection.execute("SELECT COUNT(*) FROM latest WHERE key >= ? AND key < ?", keys).fetchone()
    return int(found[0])


def read_kept_keys(connection: sqlite3.Connection) -> list[str]:
    """The contract's ``kept_keys``."""
    return [key for (key,) in connection.execute("SELECT key FROM idempotency")]


def read_batches(
    connection: sqlite3.Connection, epoch: str, prefix: str, position: int, until: int
) -> tuple[list[Batch], int]:
    """Commits under ``prefix`` after revision ``position`` up to ``until``, and the revision these reach: whole
    revisions, as many as fit a bounded answer. Raises Compacted if ``position`` is no longer, or not yet, there."""
    with _one_instant(connection):
        revision, compacted = _read_reach(connection)
        check_reach(position, compacted, revision)
        rows = connection.execute(
            "SELECT version.position, version.key, version.value, replaced.value"
            " FROM version LEFT JOIN version AS replaced ON replaced.position = version.previous"
            " WHERE version.position > ? AND version.position <= ? AND version.key >= ? AND version.key < ?"
            " ORDER BY version.position",
            (end_of(position), end_of(until), prefix, end_of_prefix(prefix) or _LAST_POSSIBLE_KEY),
        )
        batches: list[Batch] = []
        changes: list[Change] = []
        current, size = position, 0
        for count, (place, key, value, previous) in enumerate(rows):
            if revision_at(place) != current:
                if count >= _REPLAY_ROWS or size >= _REPLAY_BYTES:
                    return batches, current
                current = revision_at(place)
                changes = []
                batches.append(Batch(current, format_cursor(epoch, current), changes))
            changes.append(Change(key, value, previous))
            size += len(value or b"") + len(previous or b"")
        return batches, until


def _read_replaced(
    connection: sqlite3.Connection, keys: tuple[str, str], pinned: int, most: int
) -> Iterator[tuple[str, int, bytes]]:
    """Values replaced since ``pinned``, as they were then: the first change of a key points back behind the pin."""
    return connection.execute(
        "SELECT replaced.key, replaced.position, replaced.value"
        " FROM version JOIN version AS replaced ON replaced.position = version.previous"
        " WHERE version.position > ? AND version.previous <= ? AND version.key >= ? AND version.key < ?"
        " ORDER BY replaced.key LIMIT ?",
        (end_of(pinned), end_of(pinned), *keys, most),
    )


def _read_reach(connection: sqlite3.Connection) -> tuple[int, int]:
    revision, compacted = connection.execute("SELECT revision, compacted FROM state WHERE id = 1").fetchone()
    return revision, compacted


@contextmanager
def _one_instant(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
