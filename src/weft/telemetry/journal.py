"""The journal in a SQLite file: events for people. Several processes may have it open at once.

Appending never waits: a thread writes the gathered events in one transaction. The same event of the same object within ten
minutes only raises its count; it then gets a new id, so a reader that continues from an id sees it again. Old events are
removed. A kill may lose the last moments: no decision depends on the journal. A damaged file is put aside.

Events of the fabric's other servers lie here as copies, each under an id of this journal's, so who reads it reads all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.durable_file import make_private
from weft.contracts.journal import Event
from weft.objects.errors import shorten
from weft.objects.identity import Ref, new_uid
from weft.telemetry.taking import EventBatch, GroupedTaking

FOLD_SECONDS = 600.0
GATHER_SECONDS = 0.2  # events are gathered for this long before they are written
_TRIM_EVERY = 500  # events, or a twentieth of those that are kept
_MOST_WAITING = 20_000
_LONGEST_MESSAGE = 2048
_LOG_FILE_BYTES = 64 << 20
_COLUMNS = "id, first_at, at, type, reason, message, kind, project, name, uid, source, count"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS event(
    id INTEGER PRIMARY KEY AUTOINCREMENT, first_at REAL NOT NULL, at REAL NOT NULL, type TEXT NOT NULL,
    reason TEXT NOT NULL, message TEXT NOT NULL, kind TEXT NOT NULL, project TEXT, name TEXT NOT NULL,
    uid TEXT NOT NULL, source TEXT NOT NULL, count INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS event_by_message ON event(uid, reason, message, at);
DROP INDEX IF EXISTS event_by_object;
CREATE INDEX IF NOT EXISTS event_by_time ON event(at);
CREATE INDEX IF NOT EXISTS event_by_name ON event(kind, name);
CREATE TABLE IF NOT EXISTS journal(id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS taken(source TEXT PRIMARY KEY, outbox TEXT NOT NULL, through INTEGER NOT NULL);
"""
_ADD_SERVER = (
    "ALTER TABLE event ADD COLUMN server TEXT NOT NULL DEFAULT ''"  # whose event it is; '': of this server itself
)
# Ids stand in the order in which events happened at one server; between two servers only their clocks tell.
_MADE = "FROM event AS made WHERE made.kind = 'project' AND made.name = event.project AND made.reason = 'Created'"
_SINCE_ITS_PROJECT = f"""id > COALESCE((SELECT MAX(made.id) {_MADE} AND made.server = event.server), 0)
    AND at >= COALESCE((SELECT MAX(made.first_at) {_MADE} AND made.server != event.server), 0)"""
_log = logging.getLogger("weft.journal")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A stored event."""

    id: int  # grows with time
    at: float  # when it last happened, in unix seconds
    first_at: float  # ``count`` is how often it happened since
    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    object: Ref
    source: str
    count: int = 1


class _Gathered(NamedTuple):
    """An event that came ``times`` times between two instants."""

    first_at: float
    at: float
    event: Event
    times: int


class SqliteJournal:
    """The journal in the file ``path``; keeps ``keep_seconds`` and at most about ``keep_events``."""

    def __init__(
        self,
        path: str | Path,
        clock: Clock | None = None,
        *,
        keep_seconds: float = 7 * 86400.0,
        keep_events: int = 100_000,
    ) -> None:
        self._path = Path(path)
        self._clock = clock or SystemClock()
        self._keep_seconds = keep_seconds
        self._keep_events = keep_events
        self._waiting: list[tuple[float, Event]] = []
        self._gathering = threading.RLock()
        self._wake = threading.Condition(self._gathering)
        self._writing = False
        self._closed = False
        self._hurries = 0  # how many callers of ``flush`` wait
        self._thread: threading.Thread | None = None
        self._trim_every = max(_TRIM_EVERY, keep_events // 20)
        self._appended = self._trim_every  # trims with the first write too, for a process that is often killed
        self._lock = threading.Lock()  # of the reading connection
        self._taking = GroupedTaking(self._take_together)
        self._reading = self._connect()

    def append(self, event: Event) -> None:
        """Keep ``event``; the same event again soon after only raises its count. Never waits for the disk."""
        with self._gathering:
            if self._closed or len(self._waiting) >= _MOST_WAITING:
                return
            self._waiting.append(self._stamp(event))
            if len(self._waiting) > 1:
                return  # the thread is awake already
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def take(self, source: str, outbox: str, events: Sequence[tuple[int, Event]]) -> int:
        """Keep the numbered events of another outbox than the journal's, each once, and return the greatest number that is kept
        for good; 0 if that can't be known now. Waits for the disk."""
        return self._taking.put(source, outbox, [(number, self._stamp(event)) for number, event in events]).result()

    async def take_soon(self, source: str, outbox: str, events: Sequence[tuple[int, Event]]) -> int:
        """``take``, without a thread that waits: those of many sources at once are one commit."""
        stamped = [(number, self._stamp(event)) for number, event in events]
        return await asyncio.wrap_future(self._taking.put(source, outbox, stamped))

    def copy(self, server: str, journal: str, records: Sequence[Record]) -> None:
        """Keep copies of another server's own events, at least one, in the order of their ids there; one that came before is
        replaced. Waits for the disk. Raises sqlite3.Error, and keeps none then."""
        connection = self._open()
        try:
            connection.execute("BEGIN IMMEDIATE")
            for one in records:
                same = (server, one.object.uid, one.reason, one.message, one.first_at)
                connection.execute(
                    "DELETE FROM event WHERE server = ? AND uid = ? AND reason = ? AND message = ? AND first_at = ?",
                    same,
                )
                event = Event(one.type, one.reason, shorten(one.message, _LONGEST_MESSAGE), one.object, one.source)
                self._add(connection, _Gathered(one.first_at, one.at, event, one.count), server)
            through = records[-1].id
            connection.execute(
                "INSERT OR REPLACE INTO taken VALUES (?, ?, ?)", (_name_source(server), journal, through)
            )
            self._note_added(connection, len(records))
            connection.execute("COMMIT")
        finally:
            connection.close()

    def find_copied(self, server: str) -> tuple[str, int]:
        """The journal of that server that was copied last, and the id up to which it was; "" and 0: none."""
        with self._lock:
            row = self._reading.execute(
                "SELECT outbox, through FROM taken WHERE source = ?", (_name_source(server),)
            ).fetchone()
        return (str(row[0]), int(row[1])) if row is not None else ("", 0)

    def _take_together(self, batches: Sequence[EventBatch]) -> list[int]:
        """Keep the batches in one commit; one that can't be kept takes nothing of the others."""
        try:
            connection = self._open()
        except sqlite3.Error as problem:
            return self._refuse(batches, problem)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            kept = [self._take_one(connection, batch) for batch in batches]
            connection.execute("COMMIT")
            return kept
        except sqlite3.Error as problem:
            return self._refuse(batches, problem)
        finally:
            connection.close()

    def _take_one(self, connection: sqlite3.Connection, batch: EventBatch) -> int:
        connection.execute("SAVEPOINT batch")
        try:
            row = connection.execute("SELECT outbox, through FROM taken WHERE source = ?", (batch.source,)).fetchone()
            before = int(row[1]) if row is not None and row[0] == batch.outbox else 0
            through = max([before, *(number for number, _ in batch.events)])
            self._insert(connection, [stamped for number, stamped in batch.events if number > before])
            connection.execute("INSERT OR REPLACE INTO taken VALUES (?, ?, ?)", (batch.source, batch.outbox, through))
        except (sqlite3.Error, UnicodeError) as problem:
            if not connection.in_transaction:
                raise  # a full disk, which has undone the whole commit
            connection.execute("ROLLBACK TO batch")
            (through,) = self._refuse([batch], problem)
        connection.execute("RELEASE batch")
        return through

    def _refuse(self, batches: Sequence[EventBatch], problem: Exception) -> list[int]:
        count = sum(len(batch.events) for batch in batches)
        nodes = batches[0].source if len(batches) == 1 else f"{batches[0].source} and {len(batches) - 1} more"
        _log.warning("can't write %d events of node %s to the journal: %s", count, nodes, problem)
        return [0] * len(batches)

    def _stamp(self, event: Event) -> tuple[float, Event]:
        """The event with its time, and a message that isn't too long."""
        if len(event.message) > _LONGEST_MESSAGE:
            event = msgspec.structs.replace(event, message=shorten(event.message, _LONGEST_MESSAGE))
        return event.at if event.at is not None else self._clock.now(), event

    def read(
        self,
        *,
        since: int | None = None,
        about: str = "",
        projects: Collection[str] | None = None,
        limit: int = 1000,
        own: bool = False,
    ) -> list[Record]:
        """Records after id ``since``, oldest first; without it the newest ``limit``, oldest first. ``about`` is kind,
        kind/name or kind/project/name ("-" for no project). ``projects``: only of their objects, and nothing from before such a
        project was created: an earlier one of its name was others'. ``own``: no copies of other servers' events."""
        conditions, values = _conditions(about)
        if own:
            conditions = [*conditions, "server = ''"]
        if projects is not None:
            named = sorted(projects)
            conditions = [*conditions, f"project IN ({', '.join('?' * len(named))})", _SINCE_ITS_PROJECT]
            values = [*values, *named]
        if since is not None:
            conditions, values = [*conditions, "id > ?"], [*values, since]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        order = "id ASC" if since is not None else "at DESC, id DESC"  # a copy may come long after its event
        with self._lock:
            rows = self._reading.execute(
                f"SELECT {_COLUMNS} FROM event{where} ORDER BY {order} LIMIT ?",  # noqa: S608 (all of these are ours)
                [*values, limit],
            ).fetchall()
        records = [_record(row) for row in rows]
        return records if since is not None else records[::-1]

    async def read_soon(self, **selection: Any) -> list[Record]:
        """``read``, off the loop."""
        return await asyncio.to_thread(self.read, **selection)

    def read_id(self) -> str:
        """The journal's own: another file, also one that replaces a damaged one, has another."""
        with self._lock:
            row = self._reading.execute("SELECT id FROM journal").fetchone()
            if row is None:
                self._reading.execute("BEGIN IMMEDIATE")  # two processes may have opened a new file
                self._reading.execute(
                    "INSERT INTO journal SELECT ? WHERE NOT EXISTS (SELECT 1 FROM journal)", (new_uid(),)
                )
                self._reading.execute("COMMIT")
                row = self._reading.execute("SELECT id FROM journal").fetchone()
        return str(row[0])

    def find_newest(self) -> int:
        """The greatest id; 0: there are no events."""
        with self._lock:
            row = self._reading.execute("SELECT max(id) FROM event").fetchone()
        return int(row[0] or 0)

    def find_place(self, at: float) -> int:
        """The id after which all events lie that happened at ``at`` (unix seconds) or later, and perhaps some others."""
        with self._lock:
            row = self._reading.execute("SELECT min(id) FROM event WHERE at >= ?", (at,)).fetchone()
        return int(row[0]) - 1 if row[0] is not None else self.find_newest()

    def flush(self) -> None:
        """Return once all appended events are written (or given up)."""
        with self._wake:
            self._hurries += 1
            self._wake.notify_all()
            while self._thread is not None and (self._waiting or self._writing):
                self._wake.wait()
            self._hurries -= 1

    def close(self) -> None:
        """Write the waiting events, and close the file."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._taking.close()
        with self._lock:
            self._reading.close()

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.DatabaseError as problem:
            if isinstance(problem, sqlite3.OperationalError) and "locked" in str(problem):
                raise
            _log.warning(
                "journal %s is damaged (%s); a new one replaces it, the old one stays as %s.damaged",
                self._path,
                problem,
                self._path.name,
            )
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._path.replace(self._path.with_name(self._path.name + ".damaged"))
            return self._open()

    def _open(self) -> sqlite3.Connection:
        make_private(self._path)
        connection = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA journal_size_limit={_LOG_FILE_BYTES}")
            connection.execute("PRAGMA cache_size=-1000")
            connection.executescript(_SCHEMA)
            if not any(row[1] == "server" for row in connection.execute("PRAGMA table_info(event)")):
                with contextlib.suppress(sqlite3.OperationalError):  # another process has just added it
                    connection.execute(_ADD_SERVER)
        except BaseException:
            connection.close()
            raise
        return connection

    def _write_all(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while True:
                with self._wake:
                    self._writing = False
                    self._wake.notify_all()
                    while not self._waiting and not self._closed:
                        self._wake.wait()
                    self._wake.wait_for(lambda: self._closed or self._hurries > 0, GATHER_SECONDS)
                    events, self._waiting = self._waiting, []
                    self._writing = True
                if not events:
                    return
                try:
                    connection = connection or self._open()
                    self._write(connection, events)
                except (sqlite3.Error, UnicodeError) as problem:
                    _log.warning("can't write %d events to the journal: %s", len(events), problem)
                    if connection is not None and connection.in_transaction:
                        connection.execute("ROLLBACK")
        finally:
            if connection is not None:
                connection.close()

    def _write(self, connection: sqlite3.Connection, events: Sequence[tuple[float, Event]]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        self._insert(connection, events)
        connection.execute("COMMIT")

    def _insert(self, connection: sqlite3.Connection, events: Sequence[tuple[float, Event]]) -> None:
        for first_at, at, event, times in _fold(events):
            same = connection.execute(
                "SELECT id, first_at, count FROM event WHERE uid = ? AND reason = ? AND message = ? AND at > ? AND at < ?"
                " AND server = '' ORDER BY id DESC LIMIT 1",
                (event.object.uid, event.reason, event.message, first_at - FOLD_SECONDS, at + FOLD_SECONDS),
            ).fetchone()
            if same is not None:
                connection.execute("DELETE FROM event WHERE id = ?", (same[0],))
                first_at, times = same[1], same[2] + times
            self._add(connection, _Gathered(first_at, at, event, times), "")
        self._note_added(connection, len(events))

    def _add(self, connection: sqlite3.Connection, one: _Gathered, server: str) -> None:
        of = one.event.object
        values = (one.first_at, one.at, one.event.type, one.event.reason, one.event.message)
        connection.execute(
            f"INSERT INTO event({_COLUMNS}, server) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 (ours)
            (*values, of.kind, of.project, of.name, of.uid, one.event.source, one.times, server),
        )

    def _note_added(self, connection: sqlite3.Connection, count: int) -> None:
        self._appended += count
        if self._appended >= self._trim_every:
            self._appended = 0
            self._trim(connection)

    def _trim(self, connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM event WHERE at < ?", (self._clock.now() - self._keep_seconds,))
        connection.execute(
            "DELETE FROM event WHERE id <= (SELECT id FROM event ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (self._keep_events,),
        )


def _fold(events: Sequence[tuple[float, Event]]) -> list[_Gathered]:
    """The gathered events, each once, ordered by when it came last."""
    folded: dict[tuple[str, str, str], _Gathered] = {}
    ended: list[_Gathered] = []
    for at, event in events:
        same = (event.object.uid, event.reason, event.message)
        before = folded.pop(same, None)
        if before is not None and before.at > at - FOLD_SECONDS:
            folded[same] = _Gathered(before.first_at, at, event, before.times + 1)
        else:
            if before is not None:
                ended.append(before)
            folded[same] = _Gathered(at, at, event, 1)
    return sorted([*ended, *folded.values()], key=lambda one: one.at)


def _name_source(server: str) -> str:
    """A server among the sources of events: no node's uid looks like it."""
    return f"server:{server}"


def _conditions(about: str) -> tuple[list[str], list[Any]]:
    parts = about.split("/") if about else []
    conditions: list[str] = []
    values: list[Any] = []
    if parts:
        conditions.append("kind = ?")
        values.append(parts[0])
    if len(parts) >= 2:
        conditions.append("name = ?")
        values.append(parts[-1])
    if len(parts) >= 3:
        conditions.append("project IS ?")
        values.append(None if parts[1] == "-" else parts[1])
    return conditions, values


def _record(row: Sequence[Any]) -> Record:
    id_, first_at, at, type_, reason, message, kind, project, name, uid, source, count = row
    return Record(
        id=id_,
        at=at,
        first_at=first_at,
        type=type_,
        reason=reason,
        message=message,
        object=Ref(kind=kind, name=name, uid=uid, project=project),
        source=source,
        count=count,
    )
