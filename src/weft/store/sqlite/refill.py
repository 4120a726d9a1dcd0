"""Everything in a store's file replaced at once, while it rests: how a backup is put back."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

from weft.contracts.durable_file import keep_file, name_replaced
from weft.contracts.store import MAX_WRITES
from weft.store.cursors import make_epoch
from weft.store.sqlite.file import LockFile, as_store_error, connect, leap
from weft.store.sqlite.schema import State, create_tables, end_of, position_of, save_state


def refill(path: str | Path, entries: Iterable[tuple[str, bytes]], revision: int) -> str:
    """Put ``entries`` in the place of the store at ``path``, which no process may have open; returns the new epoch.

    The store that was there stays beside it as ``.replaced``, or with a number after that. Cursors of before are refused, and
    revisions and fences go on beyond ``revision`` and any that this store gave out. Until the end nothing is changed. Raises
    StoreUnavailable if the store is in use, StoreFull, and whatever ``entries`` raises.
    """
    target = Path(path)
    lock = LockFile(target)
    incoming = target.with_name(target.name + ".incoming")
    try:
        _remove(incoming)
        state = State(make_epoch(), make_epoch(), revision)
        leap(state, lock.read_mark())
        with closing(connect(incoming)) as connection:
            create_tables(connection, state)
            connection.execute("BEGIN IMMEDIATE")
            _insert(connection, state, entries)
            connection.execute("COMMIT")
        _keep_replaced(target)
        lock.write_mark(state)
        keep_file(incoming, target)
        return state.epoch
    except (sqlite3.Error, OSError) as problem:
        raise as_store_error(problem, target) from problem
    finally:
        with suppress(OSError):
            _remove(incoming)
        lock.release()


def _remove(incoming: Path) -> None:
    """Remove the rest of a refill that was killed, with its journal: SQLite would play that into the next one."""
    for suffix in ("", "-journal"):
        incoming.with_name(incoming.name + suffix).unlink(missing_ok=True)


def _insert(connection: sqlite3.Connection, state: State, entries: Iterable[tuple[str, bytes]]) -> None:
    """The entries as commits of the usual size, of which no history is kept."""
    for number, (key, value) in enumerate(entries):
        if number % MAX_WRITES == 0:
            state.revision += 1
        position = position_of(state.revision, number % MAX_WRITES)
        connection.execute("INSERT INTO version(position, key, value) VALUES (?, ?, ?)", (position, key, value))
        connection.execute("INSERT INTO latest(key, position) VALUES (?, ?)", (key, position))
    state.compacted = state.revision
    state.trimmed = end_of(state.revision)
    save_state(connection, state)


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
