"""The event file: SQLite, so that accepted events outlive the process and a power failure.

One thread has it open; requests that arrive meanwhile share one transaction, so a thousand events cost a few fsyncs. Nobody else
writes to the file while a gateway runs; a backup reads it (``backup.py``). Times are unix seconds.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from weft.contracts.durable_file import make_private
from weft.objects.errors import Unavailable

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]
_AT_ONCE = 512
_LOG_FILE_BYTES = 64 << 20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    qualifier TEXT NOT NULL,
    payload BLOB NOT NULL,
    context TEXT NOT NULL,
    origin TEXT NOT NULL,
    accepted_at REAL NOT NULL,
    due_at REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    dead_at REAL,
    error_type TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '',
    node TEXT NOT NULL DEFAULT '',
    held TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS event_due ON event (project, name, due_at) WHERE dead_at IS NULL;
CREATE INDEX IF NOT EXISTS event_dead ON event (project, name, dead_at) WHERE dead_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS fired (
    function TEXT NOT NULL,
    entry TEXT NOT NULL,
    last REAL NOT NULL,
    PRIMARY KEY (function, entry)
) STRICT;
CREATE TABLE IF NOT EXISTS copy (
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    era INTEGER NOT NULL,
    event BLOB NOT NULL,
    PRIMARY KEY (owner, id)
) STRICT;
CREATE INDEX IF NOT EXISTS copy_id ON copy (id);
CREATE TABLE IF NOT EXISTS owner (
    name TEXT PRIMARY KEY,
    era INTEGER NOT NULL,
    since INTEGER NOT NULL,
    taken INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS taken (
    id TEXT NOT NULL,
    owner TEXT NOT NULL,
    PRIMARY KEY (id, owner)
) STRICT, WITHOUT ROWID;
"""


class EventFile:
    """``path`` is created if it isn't there. It may be opened again after a close, or after a failure to open it. ``on_written`` is
    called after changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.on_written: Callable[[], None] = lambda: None
        self._work: queue.SimpleQueue[tuple[Work, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None

    async def open(self) -> None:
        """Open it. Raises Unavailable for a file that can't be read."""
        opened: asyncio.Future[None] = self._loop.create_future()
        thread = threading.Thread(target=self._run, args=(opened,), name="weft-events", daemon=True)
        thread.start()
        await opened
        self._thread = thread

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._work.put(None)
            await asyncio.to_thread(thread.join)

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of ``work``, once its changes are on the disk. Raises Unavailable if they can't be written."""
        if self._thread is None:
            raise _trouble("the file is not open")
        future: asyncio.Future[T] = self._loop.create_future()
        self._work.put((work, future))
        return await asyncio.shield(future)

    def _run(self, opened: asyncio.Future[None]) -> None:
        try:
            db = open_file(self._path)
        except sqlite3.Error as problem:
            self._settle([(opened, None, _trouble(problem))])
            return
        self._settle([(opened, None, None)])
        try:
            while (first := self._work.get()) is not None:
                batch = [first]
                ended = False
                while len(batch) < _AT_ONCE and not self._work.empty():
                    if (more := self._work.get()) is None:
                        ended = True
                        break
                    batch.append(more)
                before = db.total_changes
                results = _commit(db, batch)
                self._settle(results, has_written=db.total_changes != before)
                if ended:
                    return
        finally:
            db.close()

    def _settle(
        self, results: list[tuple[asyncio.Future[Any], Any, Exception | None]], *, has_written: bool = False
    ) -> None:
        def settle() -> None:
            if has_written:
                self.on_written()
            for future, result, problem in results:
                if future.done():
                    continue
                if problem is None:
                    future.set_result(result)
                else:
                    future.set_exception(problem)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle)


def open_file(path: Path) -> sqlite3.Connection:
    """The file, created if it isn't there; its transactions are durable. Raises sqlite3.Error."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_private(path)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute(f"PRAGMA journal_size_limit={_LOG_FILE_BYTES}")
    db.executescript(_SCHEMA)
    # An earlier weft fired schedules from this file; their events were in no store.
    db.execute("UPDATE event SET origin = 'invoke' WHERE origin = 'schedule' AND EXISTS (SELECT 1 FROM fired)")
    there = {column[1] for column in db.execute("PRAGMA table_info(event)")}
    for name in ("node", "held"):
        if name not in there:  # a file of an earlier weft
            db.execute(f"ALTER TABLE event ADD COLUMN {name} TEXT NOT NULL DEFAULT ''")
    db.execute("PRAGMA temp_store=MEMORY")  # of what a gateway notes while it runs
    return db


def _commit(
    db: sqlite3.Connection, batch: list[tuple[Work, asyncio.Future[Any]]]
) -> list[tuple[asyncio.Future[Any], Any, Exception | None]]:
    """Do all in one transaction; if that fails, each in one of its own, so that one failure affects no other."""
    try:
        db.execute("BEGIN IMMEDIATE")
        results = [(future, _own(work(db)), None) for work, future in batch]
        db.execute("COMMIT")
        return list(results)
    except sqlite3.Error as problem:
        if db.in_transaction:
            db.execute("ROLLBACK")
        if len(batch) == 1:
            return [(batch[0][1], None, _trouble(problem))]
        return [one for work in batch for one in _commit(db, [work])]


def _own(result: Any) -> Any:
    """``result`` for another thread; None for a cursor: destroyed there, it would reset a statement that this thread may use."""
    return None if isinstance(result, sqlite3.Cursor) else result


def _trouble(problem: sqlite3.Error | str) -> Unavailable:
    return Unavailable(
        f"events can't be stored now: {problem}",
        hint="check whether the server's disk is full, or gateway/events.db in its state folder is damaged",
        retry_after_seconds=5.0,
    )
