"""The cache in a file of SQLite: for processes of one machine. The file is theirs together; each opens it for itself.

It holds so many entries and bytes at most: what is over goes first, then what was written first. A kill at any moment leaves the
file whole. A file that can't be read is removed, and a new one begun.

    select value from entry where key = 'weft:twin:default:cold-1' and expires_at > unixepoch()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from weft.contracts.clock import Clock
from weft.contracts.edge.cache import check_keys, check_put
from weft.objects.errors import TimedOut, Unavailable

FILE = "cache.db"
MOST_ENTRIES = 20_000
MOST_BYTES = 64 << 20  # of all keys and values, each with ENTRY_BYTES for what SQLite needs beside them
ENTRY_BYTES = 200
ANSWER_SECONDS = 2.0  # that another process may take
PAGE_BYTES = 4096
MOST_LOG_BYTES = 128 << 20  # of the log that SQLite keeps beside the file: it grows while somebody reads on and on
_AHEAD_SECONDS = (
    5.0  # an entry that was written later than that from now is of a clock that went back: it isn't believed
)
_VERSION = 1
_SCHEMA = """
create table if not exists entry (
  id integer primary key autoincrement, key text not null unique, size integer not null, written_at real not null,
  expires_at real not null, value blob not null);
create index if not exists entry_expires on entry (expires_at);
create index if not exists entry_written on entry (written_at);
create table if not exists total (one integer primary key check (one = 1), entries integer not null, bytes integer not null);
insert or ignore into total values (1, 0, 0);
create trigger if not exists entry_came after insert on entry begin
  update total set entries = entries + 1, bytes = bytes + new.size; end;
create trigger if not exists entry_went after delete on entry begin
  update total set entries = entries - 1, bytes = bytes - old.size; end;
"""
T = TypeVar("T")

log = logging.getLogger("weft.cache")


class SqliteCache:
    """``most_entries``, ``most_bytes``: all processes that share the file give the same."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        most_entries: int = MOST_ENTRIES,
        most_bytes: int = MOST_BYTES,
        most_log_bytes: int = MOST_LOG_BYTES,
    ) -> None:
        self._path, self._clock = folder / FILE, clock
        self._most_entries, self._most_bytes, self._most_log_bytes = most_entries, most_bytes, most_log_bytes
        self._lock = threading.Lock()
        self._base: sqlite3.Connection | None = None
        self._opened = (0, 0)  # device and inode of the file

    async def get(self, key: str) -> bytes | None:
        check_keys([key])
        return await asyncio.to_thread(self._perform, lambda base: self._get(base, key))

    async def put(self, values: Mapping[str, bytes], seconds: float) -> None:
        check_put(values, seconds)
        if values:
            await asyncio.to_thread(self._perform, lambda base: self._put(base, values, seconds))

    async def delete(self, keys: Sequence[str]) -> None:
        check_keys(keys)
        if keys:
            await asyncio.to_thread(self._perform, lambda base: self._delete(base, keys))

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    # --- in a thread -------------------------------------------------------------------------------------------------

    def _perform(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``act`` in one transaction, completely or not at all."""
        with self._lock:
            try:
                base = self._open()
                with base:
                    return act(base)
            except sqlite3.OperationalError as problem:
                code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
                if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise TimedOut(f"cache {self._path}: another process holds it for {ANSWER_SECONDS:g} s") from None
                self._drop()  # its file may have been removed
                raise Unavailable(f"cache {self._path}: {problem}") from None
            except sqlite3.DatabaseError as problem:
                self._begin_again(problem)
                raise Unavailable(f"cache {self._path}: {problem}; a new one begins") from None
            except OSError as problem:
                raise Unavailable(f"cache {self._path}: {problem.strerror or problem}") from None

    def _open(self) -> sqlite3.Connection:
        """The file under that name now: another process may have begun it again."""
        try:
            at = self._path.lstat()
        except FileNotFoundError:
            at = None
        if at is not None and not stat.S_ISREG(at.st_mode):  # a link would have it write into another program's file
            self._drop()
            raise Unavailable(f"cache {self._path}: it is not a file", hint="remove it: the gateway makes a file there")
        if self._base is not None:
            if at is not None and (at.st_dev, at.st_ino) == self._opened:
                return self._base
            self._drop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            at = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        base = sqlite3.connect(self._path, timeout=ANSWER_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            base.execute("pragma journal_mode = wal").fetchone()
            base.execute("pragma synchronous = normal")
            base.execute(f"pragma journal_size_limit = {8 << 20}")
            base.execute(f"pragma max_page_count = {self._find_most_pages()}")
            version = base.execute("pragma user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"it is of version {version}, which another weft wrote")
            if version != _VERSION:
                base.executescript(f"begin immediate; {_SCHEMA} pragma user_version = {_VERSION}; commit;")
        except BaseException:
            base.close()
            raise
        self._base, self._opened = base, (at.st_dev, at.st_ino)
        return base

    def _find_most_pages(self) -> int:
        """An entry takes at most a page more than its bytes, and pages of the table and the indexes may be half empty."""
        return 2 * (self._most_bytes // PAGE_BYTES + self._most_entries) + 64

    def _begin_again(self, problem: sqlite3.DatabaseError) -> None:
        log.error("%s can't be read (%s); a new one begins", self._path, problem)
        self._drop()
        for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
            with contextlib.suppress(OSError):
                self._path.with_name(name).unlink()

    def _drop(self) -> None:
        if self._base is not None:
            with contextlib.suppress(sqlite3.Error):
                self._base.close()
        self._base = None

    def _close(self) -> None:
        with self._lock:
            self._drop()

    def _get(self, base: sqlite3.Connection, key: str) -> bytes | None:
        now = self._clock.now()
        row = base.execute(
            "select value from entry where key = ? and expires_at > ? and written_at <= ?",
            (key, now, now + _AHEAD_SECONDS),
        ).fetchone()
        return bytes(row[0]) if row is not None else None

    def _put(self, base: sqlite3.Connection, values: Mapping[str, bytes], seconds: float) -> None:
        now = self._clock.now()
        rows = [
            (key, len(key.encode()) + len(value) + ENTRY_BYTES, now, now + seconds, value)
            for key, value in values.items()
        ]
        self._cut_log(base)
        base.execute("begin immediate")
        base.execute("delete from entry where expires_at <= ?", (now,))
        base.execute("delete from entry where written_at > ?", (now + _AHEAD_SECONDS,))
        base.executemany("delete from entry where key = ?", [(row[0],) for row in rows])
        base.executemany("insert into entry (key, size, written_at, expires_at, value) values (?, ?, ?, ?, ?)", rows)
        self._trim(base)

    def _cut_log(self, base: sqlite3.Connection) -> None:
        """Raises Unavailable when the log beside the file has its bound, and a reader keeps it there."""
        beside = self._path.with_name(f"{FILE}-wal")
        if _measure(beside) > self._most_log_bytes:
            base.execute("pragma wal_checkpoint(truncate)").fetchone()
            if _measure(beside) > self._most_log_bytes:
                raise Unavailable(
                    f"cache {self._path}: a program keeps reading in one transaction, so {beside.name} is full",
                    hint="end that program, or its transaction",
                )

    def _trim(self, base: sqlite3.Connection) -> None:
        """Remove what was written first until the rest fits."""
        entries, size = base.execute("select entries, bytes from total").fetchone()
        entries, size = entries - self._most_entries, size - self._most_bytes
        last = None
        if entries > 0 or size > 0:
            for id, of_entry in base.execute("select id, size from entry order by id"):
                if entries <= 0 and size <= 0:
                    break
                entries, size, last = entries - 1, size - of_entry, id
        if last is not None:
            base.execute("delete from entry where id <= ?", (last,))

    def _delete(self, base: sqlite3.Connection, keys: Sequence[str]) -> None:
        base.execute("begin immediate")
        base.executemany("delete from entry where key = ?", [(key,) for key in keys])


def _measure(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
