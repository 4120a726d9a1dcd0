"""The embedded store: the contract over one SQLite file, durable when a commit returns.

Writes go through the writer's thread, reads through readers' threads, leases stay in memory; this file, on the loop,
only joins them. One process may have a file open.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.store import Batch, Entry, Lease, Page, Precondition, Write, revision_of
from weft.objects.errors import StoreUnavailable
from weft.store.leases import LeaseTable
from weft.store.limits import check_commit, check_key, check_limit, check_prefix
from weft.store.sqlite.file import FENCE_BLOCK, LockFile, as_store_error, begin_session, connect_writer
from weft.store.sqlite.newest import Newest
from weft.store.sqlite.reader import Readers, count_keys, read_batches, read_entry, read_kept_keys, read_page
from weft.store.sqlite.schema import State
from weft.store.sqlite.writer import Deliver, Published, WriteOutcome, Writer
from weft.store.watches import Watches

_RECENT_BYTES = 16_000_000


class SqliteStore:
    """A store in the file ``path``.

    Remembers ``keep_revisions`` revisions of history, or fewer if these wrote more than ``keep_bytes``. ``max_bytes``
    bounds the file: beyond it commits raise StoreFull. ``cache_bytes`` of the newest entries stay in memory."""

    def __init__(
        self,
        path: str | Path,
        clock: Clock | None = None,
        *,
        keep_revisions: int = 100_000,
        keep_bytes: int = 512_000_000,
        readers: int = 3,
        max_bytes: int | None = None,
        cache_bytes: int = 128_000_000,
    ) -> None:
        self._path = Path(path)
        self._clock = clock or SystemClock()
        self._keep_revisions = keep_revisions
        self._keep_bytes = keep_bytes
        self._reader_count = readers
        self._max_bytes = max_bytes
        self._cache_bytes = cache_bytes
        self._running: _Running | None = None

    async def open(self) -> None:
        """Open the file, making it if it isn't there, and start the threads.

        Raises StoreUnavailable if another process has it open, or it is locked, damaged, or no store."""
        if self._running is not None:
            return
        self._start(*await asyncio.to_thread(self._open_file))

    def _start(self, connection: sqlite3.Connection, state: State, lock: LockFile) -> None:
        leases = LeaseTable(self._clock, last_fence=state.fence_ceiling - FENCE_BLOCK, ceiling=state.fence_ceiling)
        readers = Readers(self._path, self._reader_count)
        epoch = state.epoch

        async def replay(prefix: str, position: int, until: int) -> tuple[list[Batch], int]:
            return await readers.run(lambda reading: read_batches(reading, epoch, prefix, position, until))

        watches = Watches(epoch, state.revision, replay, recent_bytes=_RECENT_BYTES)
        newest = Newest(state.revision, self._cache_bytes)
        writer = Writer(
            self._path,
            connection,
            state,
            lock,
            self._clock,
            leases.holds,
            _deliver_to(newest, watches),
            keep_revisions=self._keep_revisions,
            keep_bytes=self._keep_bytes,
        )
        self._running = _Running(epoch, lock, leases, newest, readers, watches, writer)

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        size = check_commit(writes, preconditions, idempotency_key)
        revision: int = await self._live().writer.submit(
            lambda transaction: transaction.commit(writes, preconditions, idempotency_key), size
        )
        return revision

    async def get(self, key: str) -> Entry | None:
        running = self._live()
        found = running.newest.find(key)
        if found != "unknown":
            return found
        check_key(key)
        mark = running.newest.mark
        entry, revision = await running.readers.run(lambda reading: read_entry(reading, key))
        await running.newest.reached(revision)
        running.newest.learn(key, entry, mark)
        return entry

    async def list(self, prefix: str, *, limit: int = 0, after: str | None = None) -> Page:
        check_prefix(prefix)
        check_limit(limit)
        running = self._live()
        page = await running.readers.run(lambda reading: read_page(reading, running.epoch, prefix, limit, after))
        await running.newest.reached(revision_of(page.cursor))
        return page

    async def count(self, prefix: str) -> int:
        check_prefix(prefix)
        return await self._live().readers.run(lambda reading: count_keys(reading, prefix))

    def watch(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        return self._live().watches.follow(prefix, cursor)

    async def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Lease | None:
        running = self._live()
        while running.leases.needs_ceiling(name):
            ceiling = await running.writer.submit(lambda transaction: transaction.reserve_fences(FENCE_BLOCK), 0)
            running.leases.raise_ceiling(ceiling)
        return running.leases.grant(name, holder, ttl_seconds, digest)

    async def release(self, name: str, holder: str) -> None:
        self._live().leases.release(name, holder)

    async def leases(self, prefix: str, *, digests: bool = False) -> Sequence[Lease]:
        return self._live().leases.live(prefix, digests=digests)

    async def kept_keys(self) -> Sequence[str]:
        return await self._live().readers.run(read_kept_keys)

    async def compact(self, keep_revisions: int) -> None:
        await self._live().writer.submit(lambda transaction: transaction.compact(keep_revisions), 0)

    async def close(self) -> None:
        """Finish the commits in hand, end the watches, let the file go."""
        running, self._running = self._running, None
        if running is None:
            return
        running.watches.close()
        await running.readers.stop()
        await running.writer.stop()
        running.lock.release()

    def _live(self) -> _Running:
        if self._running is None:
            raise StoreUnavailable(f"store {self._path} is closed")
        return self._running

    def _open_file(self) -> tuple[sqlite3.Connection, State, LockFile]:
        lock = LockFile(self._path)
        try:
            connection = connect_writer(self._path, self._max_bytes)
            try:
                return connection, begin_session(connection, self._path, lock), lock
            except BaseException:
                connection.close()
                raise
        except (sqlite3.Error, OSError) as problem:
            lock.release()
            raise as_store_error(problem, self._path) from problem
        except BaseException:
            lock.release()
            raise


@dataclass(frozen=True, slots=True)
class _Running:
    """The parts of an open store."""

    epoch: str
    lock: LockFile
    leases: LeaseTable
    newest: Newest
    readers: Readers
    watches: Watches
    writer: Writer


def _deliver_to(newest: Newest, watches: Watches) -> Deliver:
    def deliver(outcomes: Sequence[WriteOutcome], published: Sequence[Published], compacted: int) -> None:
        for revision, changes in published:
            newest.publish(revision, changes)
            watches.publish(revision, changes)
        watches.forget(compacted)
        for outcome in outcomes:
            future = outcome.request.future
            if future.cancelled():
                continue
            if outcome.error is None:
                future.set_result(outcome.result)
            else:
                future.set_exception(outcome.error)

    return deliver
