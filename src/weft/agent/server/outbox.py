"""Events on the node that the server doesn't know yet, numbered, in a file that outlives the agent, within bounds.

The server says up to which number it has them, and those go. One that comes twice has the same number, and counts once. Times are
ages when they are sent: by the clock that never jumps while the machine is up, across a boot by the wall clock. Of too many the
oldest go, and are counted; the server hears how many. Where the file can't be written, events wait in memory; a damaged file is
put aside.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from weft.agent.state.wall_clock import WallClock
from weft.contracts.clock import Clock
from weft.contracts.durable_file import make_private
from weft.objects.errors import shorten
from weft.objects.identity import Ref, new_uid
from weft.protocol.report import EventType, NodeEvent

log = logging.getLogger("weft.agent")
FILE = "outbox.db"
MOST_EVENTS = 50_000
MOST_BYTES = 32 << 20
CONTACT_SECONDS = 60.0  # between two notes of when the server has answered
MOST_UNSAVED = 500  # in memory, while the file can't be written
LONGEST_MESSAGE = 2000
_DROPPED_AT_ONCE = 50  # events go in pieces, not one by one
_LEAST_BYTES = 100  # of an event in the file: its body alone has as many
_START_BITS = 32  # a number's upper part counts starts of the agent: those that couldn't be saved had numbers too
_MOST_STARTS = 1 << 30  # a number is at most 2**62
_SCHEMA = """
CREATE TABLE IF NOT EXISTS event(
    n INTEGER PRIMARY KEY, at REAL NOT NULL, elapsed REAL NOT NULL, boot TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value);
"""


class OutboxState(msgspec.Struct, frozen=True):
    """The events that wait, and how many were dropped so far."""

    events: int
    bytes: int
    dropped: int


class _Waiting(msgspec.Struct, frozen=True):
    n: int
    at: float  # unix seconds, by the wall clock
    elapsed: float
    boot: str  # id of the machine's boot that ``elapsed`` is of
    body: bytes


class Outbox:
    """The outbox of ``node``; in ``folder`` (None: in memory alone). ``boot_id`` is of the machine's present boot."""

    def __init__(
        self,
        folder: Path | None,
        clock: Clock,
        wall: WallClock | None = None,
        *,
        boot_id: str = "",
        node: Ref | None = None,
        most_events: int = MOST_EVENTS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._path = folder / FILE if folder is not None else None
        self._clock, self._wall = clock, wall or WallClock(None, clock)
        self._boot_id, self._node = boot_id, node
        self._most_events, self._most_bytes = most_events, most_bytes
        self._unsaved: deque[_Waiting] = deque()
        self._dirty = False
        self.id, self._number = "", 0
        self._saved, self._bytes = 0, 0
        self._dropped, self._dropped_through = 0, 0
        self.contact_at: float | None = None  # unix seconds; of an earlier agent
        self._most_lost: int | None = None  # with a damaged file
        self._connect()
        self._contact_saved_at = self._clock.elapsed() - CONTACT_SECONDS
        try:
            if not self.id:
                self.id = new_uid()
                self._write_meta("id", self.id)
            self._write_meta("starts", self._number >> _START_BITS)
        except sqlite3.Error as problem:
            log.warning("the outbox can't be written: %s", problem)
            self.id = new_uid()  # the file's next numbers may be these again
        if self._most_lost is not None:
            self._report_damage(
                f"it was put aside, and the events that waited in it, {self._most_lost} at most, are lost"
            )

    @property
    def state(self) -> OutboxState:
        return OutboxState(len(self), self._bytes + sum(len(one.body) for one in self._unsaved), self._dropped)

    def __len__(self) -> int:
        return int(self._saved) + len(self._unsaved)

    def put(self, type_: EventType, reason: str, message: str, object: Ref) -> None:
        """Keep an event that happened now."""
        message = shorten(message, LONGEST_MESSAGE).encode(errors="replace").decode()
        self._number += 1
        body = msgspec.json.encode(NodeEvent(type_, reason, message, object))
        waiting = _Waiting(self._number, self._wall.now(), self._clock.elapsed(), self._boot_id, body)
        try:
            self._free_capacity(len(body))
            self._execute("INSERT INTO event VALUES (?, ?, ?, ?, ?)", *msgspec.structs.astuple(waiting))
        except sqlite3.Error as problem:
            if not self._unsaved:
                log.warning("the outbox can't be written, its newest events wait in memory: %s", problem)
            self._unsaved.append(waiting)
            if len(self._unsaved) > MOST_UNSAVED:
                self._note_dropped(1, self._unsaved.popleft().n)
            return
        self._saved, self._bytes, self._dirty = self._saved + 1, self._bytes + len(body), True

    def read(self, most: int) -> list[NodeEvent]:
        """The oldest events that wait, with their numbers and ages."""
        if not len(self) and not self._dropped_through:
            return []
        rows: list[Any] = []
        with contextlib.suppress(sqlite3.Error):
            rows = self._execute("SELECT n, at, elapsed, boot, body FROM event ORDER BY n LIMIT ?", most)
        waiting = sorted([*(_Waiting(*row) for row in rows), *self._unsaved], key=lambda one: one.n)
        events, damaged = list[NodeEvent](), list[int]()
        for one in waiting[:most]:
            try:
                events.append(self._read_event(one))
            except (msgspec.MsgspecError, ValueError, TypeError):
                damaged.append(one.n)
        if damaged:
            self._drop_damaged(damaged)
        if self._dropped_through and self._node is not None:
            events = [self._report_dropped(self._node), *events[: most - 1]]
        return events

    def acknowledge(self, through: int) -> None:
        """The server has all up to this number."""
        self._number = max(self._number, through)
        while self._unsaved and self._unsaved[0].n <= through:
            self._unsaved.popleft()
        with contextlib.suppress(sqlite3.Error):
            if self._dropped_through and self._dropped_through <= through:
                self._dropped_through = 0
                self._write_meta("dropped_through", 0)
            if self._saved:
                self._delete(through)

    @property
    def is_due(self) -> bool:
        """Whether there is anything to ``sync``."""
        return (self._dirty and self._path is not None) or self._wall.is_due

    def note_contact(self) -> None:
        """The server has answered: the next agent knows about when."""
        if self._clock.elapsed() - self._contact_saved_at >= CONTACT_SECONDS:
            self._contact_saved_at = self._clock.elapsed()
            with contextlib.suppress(sqlite3.Error):
                self._write_meta("contact_at", self._wall.now())

    def sync(self) -> None:
        """Make what was put safe from a power cut; for a thread. A kill of the agent loses nothing in any case."""
        self._wall.save()
        if not self._dirty or self._path is None:
            return
        self._dirty = False
        with contextlib.suppress(OSError):
            descriptor = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        self._connection.close()

    def _read_event(self, one: _Waiting) -> NodeEvent:
        since_boot, by_wall = self._clock.elapsed() - one.elapsed, self._wall.now() - one.at
        age = since_boot if one.boot == self._boot_id else by_wall
        if not math.isfinite(age):
            raise ValueError("its time is damaged")
        return msgspec.structs.replace(
            msgspec.json.decode(one.body, type=NodeEvent), n=one.n, age_seconds=round(max(0.0, age), 3)
        )

    def _report_dropped(self, node: Ref) -> NodeEvent:
        message = (
            f"the node's outbox was full: its oldest events were dropped, {self._dropped} since the node joined"
            if self._dropped != 1
            else "the node's outbox was full: its oldest event was dropped"
        )
        return NodeEvent("Warning", "EventsDropped", message, node, n=self._dropped_through)

    def _free_capacity(self, size: int) -> None:
        if self._saved < self._most_events and self._bytes + size <= self._most_bytes:
            return
        piece = max(1, min(_DROPPED_AT_ONCE, self._most_events // 10))
        rows = self._execute("SELECT n FROM event ORDER BY n LIMIT ?", piece)
        if rows:
            newest = int(rows[-1][0])
            count = self._delete(newest)
            self._note_dropped(count, newest)

    def _drop_damaged(self, numbers: list[int]) -> None:
        """Remove events that can't be read: the server would never acknowledge them."""
        with contextlib.suppress(sqlite3.Error):
            for number in numbers:
                self._execute("DELETE FROM event WHERE n = ?", number)
            self._saved, self._bytes = self._measure()
            self._dropped, self._dirty = self._dropped + len(numbers), True
            log.warning(
                "the outbox %s is damaged: events that can't be read were dropped: %d", self._path, len(numbers)
            )
            self._write_meta("dropped", self._dropped)
            self._report_damage(f"events in it that can't be read are lost: {len(numbers)}")

    def _report_damage(self, what: str) -> None:
        if self._node is not None:
            self.put("Warning", "OutboxDamaged", f"the node's outbox is damaged: {what}", self._node)

    def _note_dropped(self, count: int, through: int) -> None:
        self._dropped, self._dropped_through = self._dropped + count, max(self._dropped_through, through)
        with contextlib.suppress(sqlite3.Error):
            self._write_meta("dropped", self._dropped)
            self._write_meta("dropped_through", self._dropped_through)

    def _delete(self, through: int) -> int:
        """Remove those up to a number; how many there were."""
        counted = "SELECT count(*), coalesce(sum(length(body)), 0) FROM event WHERE n <= ?"
        count, size = self._execute(counted, through)[0]
        self._execute("DELETE FROM event WHERE n <= ?", through)
        self._saved, self._bytes, self._dirty = self._saved - count, self._bytes - size, True
        return int(count)

    def _connect(self) -> None:
        try:
            self._open()
        except (sqlite3.DatabaseError, OSError, ValueError, TypeError) as problem:
            if self._path is None:
                raise
            if isinstance(problem, (sqlite3.OperationalError, OSError)):
                log.warning("the outbox can't be opened, events wait in memory: %s", problem)
                self._path = None
            else:
                log.warning("the outbox %s is damaged (%s); a new one replaces it", self._path, problem)
                log_file = self._path.with_name(f"{self._path.name}-wal")
                size = sum(one.stat().st_size for one in (self._path, log_file) if one.exists())
                self._most_lost = min(self._most_events, size // _LEAST_BYTES)
                for suffix in ("-wal", "-shm"):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
                self._path.replace(self._path.with_name(f"{self._path.name}.damaged"))
            self._open()

    def _open(self) -> None:
        """Open the file and read its bounds. Raises sqlite3.DatabaseError, ValueError or TypeError if it is damaged."""
        if self._path is not None:
            make_private(self._path)
        connection = self._connection = sqlite3.connect(
            self._path or ":memory:", timeout=1.0, isolation_level=None, check_same_thread=False
        )
        try:
            connection.text_factory = lambda text: text.decode(errors="replace")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA cache_size=-256")
            connection.execute(f"PRAGMA journal_size_limit={1 << 20}")
            connection.executescript(_SCHEMA)
            self._load()
        except BaseException:
            connection.close()
            raise

    def _load(self) -> None:
        self.id = str(self._read_meta("id", ""))
        self._dropped, self._dropped_through = (
            int(self._read_meta("dropped", 0)),
            int(self._read_meta("dropped_through", 0)),
        )
        self._saved, self._bytes = self._measure()
        newest = self._execute("SELECT coalesce(max(n), 0) FROM event")[0][0]
        started = max(int(self._read_meta("starts", 0)), newest >> _START_BITS) + 1
        if started >= _MOST_STARTS:
            raise ValueError("its numbers are too great")
        self._number = started << _START_BITS
        contact_at = self._read_meta("contact_at", None)
        self.contact_at = float(contact_at) if contact_at is not None else None

    def _measure(self) -> tuple[int, int]:
        """How many events the file has, and the bytes of their bodies."""
        count, size = self._execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM event")[0]
        return int(count), int(size)

    def _execute(self, statement: str, *values: Any) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()

    def _read_meta(self, name: str, default: Any) -> Any:
        rows = self._execute("SELECT value FROM meta WHERE name = ?", name)
        return rows[0][0] if rows else default

    def _write_meta(self, name: str, value: Any) -> None:
        self._execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value)
