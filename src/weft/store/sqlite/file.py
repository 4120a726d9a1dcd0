"""The store's files: the database, and beside it a ``.lock`` file that one process holds while it has the store open.

The lock file also remembers which opening wrote last and how far it got. A database that does not agree is an older
copy that was put back by hand, or one that came from elsewhere: it is given a new epoch, so nobody resumes in a history
that no longer exists.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from weft.contracts.store import StoreFull
from weft.objects.errors import StoreUnavailable, WeftError
from weft.store.cursors import make_epoch
from weft.store.sqlite.schema import State, check_tables, create_tables, is_empty, load_state, save_state

FENCE_BLOCK = 1_000

# Added to revisions and fences when an epoch is renewed, so that no number the lost history gave out comes again.
_LEAP = 1_000_000_000
_MARK_BYTES = 96
_BUSY_MILLISECONDS = 2_000
_CHECKPOINT_PAGES = 4_000
_LOG_FILE_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the last opening got, by the lock file's word."""

    epoch: str
    session: str
    revision: int
    fence_ceiling: int


class LockFile:
    """``<database>.lock``: exclusive while open; raises StoreUnavailable if another process has it."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".lock")
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise cannot_open(database, problem) from problem
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = self._read_words()[-1:]
            os.close(self._descriptor)
            by = f" by process {holder[0]}" if holder else ""
            raise StoreUnavailable(
                f"store {database} is in use{by}", hint="stop that process, or name another file"
            ) from None

    def read_mark(self) -> Mark | None:
        """Mark that the last opening left; None if it left nothing that can be read."""
        words = self._read_words()
        if len(words) != 5 or not (words[2].isdecimal() and words[3].isdecimal()):
            return None
        return Mark(words[0], words[1], int(words[2]), int(words[3]))

    def write_mark(self, state: State) -> None:
        # One small write in place, no fsync: after a power cut it may be stale, which costs watchers a new list.
        facts = f"{state.epoch} {state.session} {state.revision} {state.fence_ceiling} {os.getpid()}"
        line = facts.ljust(_MARK_BYTES - 1) + "\n"
        with suppress(OSError):
            os.pwrite(self._descriptor, line.encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)

    def _read_words(self) -> list[str]:
        return os.pread(self._descriptor, _MARK_BYTES, 0).decode("ascii", "replace").split()


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the database at ``path``, which is made (mode 0600) if it isn't there."""
    try:
        if not path.is_file():  # closing one that is in use would drop the locks of other connections to it
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as problem:
        raise cannot_open(path, problem) from problem
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
    return connection


def connect_writer(path: Path, max_bytes: int | None = None) -> sqlite3.Connection:
    connection = connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_FILE_BYTES}")
        connection.execute("PRAGMA cache_size = -16000")
        if max_bytes is not None:
            page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_bytes)}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA cache_size = -8000")
    return connection


def begin_session(connection: sqlite3.Connection, path: Path, lock: LockFile) -> State:
    """Make the tables if the file is empty, take a block of fences, and renew the epoch if this is an older copy."""
    fresh = is_empty(connection)
    if fresh:
        create_tables(connection, State(make_epoch(), make_epoch()))
    check_tables(connection, str(path))
    state = load_state(connection)
    mark = lock.read_mark()
    went_on = (
        mark is not None
        and (mark.epoch, mark.session) == (state.epoch, state.session)
        and mark.revision <= state.revision
    )
    if not fresh and not went_on:
        leap(state, mark)
    state.session = make_epoch()
    state.fence_ceiling += FENCE_BLOCK
    connection.execute("BEGIN IMMEDIATE")
    save_state(connection, state)
    connection.execute("COMMIT")
    lock.write_mark(state)
    return state


def leap(state: State, lost: Mark | None) -> None:
    """A new epoch, with revisions and fences beyond any that the ``lost`` history can have given out."""
    state.epoch = make_epoch()
    state.revision = max(state.revision, lost.revision if lost else 0) + _LEAP
    state.fence_ceiling = max(state.fence_ceiling, lost.fence_ceiling if lost else 0) + _LEAP
    state.compacted = state.revision


def cannot_open(path: Path, problem: OSError) -> StoreUnavailable:
    if problem.errno == errno.ENOSPC:
        return StoreFull(f"store {path} can't be opened: the disk is full", hint="free disk space")
    return StoreUnavailable(
        f"store {path} can't be opened: {problem.strerror or problem}", hint="check the folder and its permissions"
    )


def as_store_error(problem: Exception, path: Path) -> WeftError:
    """The contract's error for what SQLite or the system reported."""
    if isinstance(problem, WeftError):
        return problem
    code = getattr(problem, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    if primary == sqlite3.SQLITE_FULL or (primary == sqlite3.SQLITE_IOERR and not _has_space(path)):
        return StoreFull(f"store {path} is full: nothing was written", hint="free disk space")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreUnavailable(f"store {path} is damaged or not a store: {problem}", hint="restore a backup")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnavailable(f"store {path} is locked by another process", hint="stop the process that has it open")
    if isinstance(problem, OSError):
        return cannot_open(path, problem)
    return StoreUnavailable(f"store {path} failed: {type(problem).__name__}: {problem}")


def _has_space(path: Path) -> bool:
    try:
        facts = os.statvfs(path.parent)
    except OSError:
        return True
    return facts.f_bavail * facts.f_frsize > 1_000_000
