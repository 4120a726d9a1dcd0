"""Copies of a store: taken while it works, put back while it rests."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from weft.contracts.durable import keep_file
from weft.objects.errors import StoreUnavailable
from weft.store.sqlite.file import LockFile, as_store_error, connect, connect_copy, leap
from weft.store.sqlite.schema import check_tables, load_state, save_state


def copy_database(source: sqlite3.Connection, target: Path) -> None:
    """A consistent copy of one instant at ``target`` (mode 0600), complete on disk or not there at all."""
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        with closing(connect(partial)) as copy:
            # All pages in one step: one read transaction, so writers go on and no page is copied twice.
            source.backup(copy, pages=-1)
            copy.execute("PRAGMA journal_mode = DELETE")  # the copy is one file, without a log beside it
        keep_file(partial, target)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def restore(backup: str | Path, path: str | Path) -> str:
    """Put ``backup`` in the place of the store at ``path``, which no process may have open; returns the new epoch.

    The store that was there stays beside it as ``.replaced``. Cursors of before are refused, and revisions and fences
    go on beyond any that were given out before. Raises StoreUnavailable if the backup is damaged or the store in use.
    """
    source, target = Path(backup), Path(path)
    if not source.is_file():
        raise StoreUnavailable(f"backup {source} does not exist", hint="name a file that a backup made")
    lock = LockFile(target)
    try:
        incoming = target.with_name(target.name + ".incoming")
        with closing(connect_copy(source)) as connection:
            _check_whole(connection, source)
            copy_database(connection, incoming)
        epoch = _renew(incoming, lock)
        _keep_replaced(target)
        keep_file(incoming, target)
        return epoch
    except (sqlite3.Error, OSError) as problem:
        raise as_store_error(problem, target) from problem
    finally:
        lock.release()


def renew_epoch(path: str | Path) -> str:
    """Declare the history of the store at ``path`` broken: every cursor is refused from now on; returns the new epoch.

    For a database that was put in place by other means than ``restore``. No process may have it open.
    """
    target = Path(path)
    lock = LockFile(target)
    try:
        return _renew(target, lock)
    except sqlite3.Error as problem:
        raise as_store_error(problem, target) from problem
    finally:
        lock.release()


def _renew(path: Path, lock: LockFile) -> str:
    with closing(connect(path)) as connection:
        check_tables(connection, str(path))
        state = load_state(connection)
        leap(state, lock.read_mark())
        connection.execute("BEGIN IMMEDIATE")
        save_state(connection, state)
        connection.execute("COMMIT")
    lock.write_mark(state)
    return state.epoch


def _keep_replaced(path: Path) -> None:
    """Keep the old database under another name, and leave no log that would be replayed into the new one."""
    if not path.exists():
        return
    with closing(connect(path)) as connection, suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("", "-wal"):
        current, kept = (path.with_name(path.name + middle + suffix) for middle in ("", ".replaced"))
        kept.unlink(missing_ok=True)
        if current.exists():
            os.link(current, kept)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _check_whole(connection: sqlite3.Connection, path: Path) -> None:
    check_tables(connection, str(path))
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if verdict != "ok":
        raise StoreUnavailable(f"backup {path} is damaged: {verdict}", hint="use an older backup")
