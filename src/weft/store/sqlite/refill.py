"""Everything in a store's file replaced, while it rests: how a backup is put back, or another store copied.

The new content grows in a file beside it, and takes its name in one step at the end."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from weft.contracts.durable_file import keep_file, name_replaced
from weft.contracts.store import Occupant, Put, Write
from weft.store.cursors import make_epoch
from weft.store.sqlite.file import LockFile, as_store_error, connect, leap
from weft.store.sqlite.schema import State, create_tables, end_of, position_of, save_state

_PAGE_ENTRIES = 1_000

A = TypeVar("A")
T = TypeVar("T")


class SqliteRefill:
    """Another content for the file ``path``. What was there stays beside it as ``.replaced``, or with a number after that;
    revisions and fences go on beyond any that it gave out. Until the end nothing is changed."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._incoming: _Incoming | None = None

    async def inspect(self) -> Occupant:
        return Occupant(0)  # what is there is kept beside it

    async def begin(self, revision: int, note: str = "") -> None:
        self._incoming = await asyncio.to_thread(_Incoming, self._path, revision)

    async def apply(self, writes: Sequence[Write]) -> None:
        await self._do(self._begun.apply, writes)

    async def keep(self, keys: Sequence[str]) -> None:
        await self._do(self._begun.keep, keys)

    async def read(self) -> AsyncGenerator[list[tuple[str, bytes]], None]:
        after = ""
        while entries := await self._do(self._begun.read, after):
            yield entries
            after = entries[-1][0]

    async def finish(self, revision: int) -> None:
        await self._do(self._begun.finish, revision)
        await self.close()

    async def abandon(self) -> None:
        await self.close()

    async def retire(self, note: str, *, keep: bool) -> None:
        if not keep:
            for suffix in ("", "-wal", "-shm", ".lock"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    async def revive(self) -> None:
        # Without the mark of its last opening it is taken for an older copy that was put back.
        self._path.with_name(self._path.name + ".lock").unlink(missing_ok=True)

    async def close(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            await asyncio.to_thread(incoming.drop)

    @property
    def _begun(self) -> _Incoming:
        assert self._incoming is not None
        return self._incoming

    async def _do(self, work: Callable[[A], T], given: A) -> T:
        try:
            return await asyncio.to_thread(work, given)
        except (sqlite3.Error, OSError) as problem:
            raise as_store_error(problem, self._path) from problem


class _Incoming:
    """The file that grows, in one transaction. The entries are as commits of the usual size, of which no history is kept."""

    def __init__(self, target: Path, revision: int) -> None:
        self.target = target
        self._lock = LockFile(target)
        self._file = target.with_name(target.name + ".incoming")
        self._connection: sqlite3.Connection | None = None
        self._state = State(make_epoch(), make_epoch(), revision, fence_ceiling=revision)
        try:
            leap(self._state, self._lock.read_mark())
            self._remove()
            self._connection = connect(self._file)
            create_tables(self._connection, self._state)
            self._connection.execute("BEGIN IMMEDIATE")
        except BaseException as problem:
            self.drop()
            if isinstance(problem, (sqlite3.Error, OSError)):
                raise as_store_error(problem, target) from problem
            raise

    def apply(self, writes: Sequence[Write]) -> None:
        execute = self._open.execute
        self._state.revision += 1
        for place, write in enumerate(writes):
            position = position_of(self._state.revision, place)
            execute("DELETE FROM version WHERE position = (SELECT position FROM latest WHERE key = ?)", (write.key,))
            if isinstance(write, Put):
                execute(
                    "INSERT INTO version(position, key, value) VALUES (?, ?, ?)", (position, write.key, write.value)
                )
                execute("INSERT OR REPLACE INTO latest(key, position) VALUES (?, ?)", (write.key, position))
            else:
                execute("DELETE FROM latest WHERE key = ?", (write.key,))

    def keep(self, keys: Sequence[str]) -> None:
        rows = [(key, self._state.revision, self._state.turn) for key in keys]
        self._open.executemany("INSERT OR IGNORE INTO idempotency(key, revision, turn) VALUES (?, ?, ?)", rows)

    def read(self, after: str) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = self._open.execute(
            "SELECT latest.key, version.value FROM latest JOIN version USING (position)"
            " WHERE latest.key > ? ORDER BY latest.key LIMIT ?",
            (after, _PAGE_ENTRIES),
        ).fetchall()
        return found

    def finish(self, revision: int) -> None:
        """Give it the store's name."""
        state = self._state
        state.revision = max(state.revision, revision)
        state.compacted = state.revision
        state.trimmed = end_of(state.revision)
        save_state(self._open, state)
        self._open.execute("COMMIT")
        self._open.close()
        _keep_replaced(self.target)
        self._lock.write_mark(state)
        keep_file(self._file, self.target)

    def drop(self) -> None:
        """Remove what didn't become the store, and let that go."""
        with suppress(OSError, sqlite3.Error):
            if self._connection is not None:
                self._connection.close()
            self._remove()
        self._lock.release()

    @property
    def _open(self) -> sqlite3.Connection:
        assert self._connection is not None
        return self._connection

    def _remove(self) -> None:
        """Remove the rest of a refill that was killed, with its journal: SQLite would play that into the next one."""
        for suffix in ("", "-journal"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)


def _keep_replaced(path: Path) -> None:
    """Keep the old database under another name, and leave no log that would be replayed into the new one."""
    if not path.exists():
        return
    with closing(connect(path)) as connection, suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    kept = name_replaced(path)
    for suffix in ("-wal", ""):  # the name counts as taken once the database has it
        current, beside = (one.with_name(one.name + suffix) for one in (path, kept))
        beside.unlink(missing_ok=True)
        if current.exists():
            os.link(current, beside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
