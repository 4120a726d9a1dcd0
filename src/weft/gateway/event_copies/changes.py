"""The queue's changes that the gateway with the copies hasn't yet: triggers note them, in memory, with the transaction that makes
them. Events that were there before are sent along, oldest first, whenever a batch has space for them."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import COLUMNS, Event, read_event

MOST_EVENTS = 512
MOST_BYTES = 2 << 20  # of payloads
_EACH_BYTES = 512  # of an event without its payload
# A schedule's event that waits is in the store; an event that is held is perhaps another gateway's.
_COPIED = "held = '' AND (origin <> 'schedule' OR dead_at IS NOT NULL)"
_NOTE = (
    "CREATE TEMP TABLE changed (place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE)",
    "CREATE TEMP TRIGGER on_insert AFTER INSERT ON main.event BEGIN"
    " DELETE FROM changed WHERE id = new.id; INSERT INTO changed (id) VALUES (new.id); END",
    "CREATE TEMP TRIGGER on_update AFTER UPDATE ON main.event BEGIN"
    " DELETE FROM changed WHERE id = new.id; INSERT INTO changed (id) VALUES (new.id); END",
    "CREATE TEMP TRIGGER on_delete AFTER DELETE ON main.event BEGIN"
    " DELETE FROM changed WHERE id = old.id; INSERT INTO changed (id) VALUES (old.id); END",
)
_END = (
    "DROP TRIGGER IF EXISTS temp.on_insert",
    "DROP TRIGGER IF EXISTS temp.on_update",
    "DROP TRIGGER IF EXISTS temp.on_delete",
    "DROP TABLE IF EXISTS temp.changed",
)


class Changed(NamedTuple):
    """Events as they are now, and ids of those that are gone; ``upto`` of those that were there before. ``begins``: these are the
    first; ``whole``: with them, all that was there before is sent for the first time."""

    put: list[Event]
    gone: list[str]
    upto: int
    begins: bool
    whole: bool


class Changes:
    def __init__(self, file: EventFile) -> None:
        self._file = file
        self._sent = self._top = 0  # ``seq`` of events that were there before: of the last one sent, and of them all
        self._begins = self._is_whole = False

    async def begin(self) -> None:
        """Note what changes from now on; what is there will be sent, too."""

        def work(db: sqlite3.Connection) -> int:
            _run(db, (*_END, *_NOTE))
            (top,) = db.execute("SELECT COALESCE(MAX(seq), 0) FROM event").fetchone()
            return int(top)

        self._top = await self._file.do(work)
        self._sent, self._begins, self._is_whole = 0, True, False

    async def end(self) -> None:
        """Note nothing any more."""
        await self._file.do(lambda db: _run(db, _END))

    async def take(self) -> Changed | None:
        """Take changes, at most MOST_EVENTS and MOST_BYTES, and call ``settle`` with them next; None if there are none."""
        put, gone, upto = await self._file.do(self._take)
        changed = Changed(put, gone, upto, self._begins, upto >= self._top and not self._is_whole)
        return changed if put or gone or changed.begins or changed.whole else None

    async def settle(self, changed: Changed, *, sent: bool) -> None:
        """Those changes were sent, or weren't."""
        if sent:
            self._sent, self._begins, self._is_whole = changed.upto, False, self._is_whole or changed.whole
            return
        ids = [(id,) for id in (*changed.gone, *(event.id for event in changed.put))]
        await self._file.do(lambda db: db.executemany("INSERT OR IGNORE INTO temp.changed (id) VALUES (?)", ids))

    def _take(self, db: sqlite3.Connection) -> tuple[list[Event], list[str], int]:
        """``put``, ``gone`` and ``upto``."""
        put, gone, free, last, upto = list[Event](), list[str](), MOST_BYTES, 0, self._sent
        for place, id in db.execute("SELECT place, id FROM temp.changed ORDER BY place LIMIT ?", (MOST_EVENTS,)):
            row = db.execute(f"SELECT {COLUMNS} FROM event WHERE id = ? AND {_COPIED}", (id,)).fetchone()  # noqa: S608 (ours)
            if row is None:
                gone.append(id)
            elif (free := free - _measure(event := read_event(row))) < 0 and put:
                break
            else:
                put.append(event)
            last = place
        if last:
            db.execute("DELETE FROM temp.changed WHERE place <= ?", (last,))
        if free < 0 or upto >= self._top:
            return put, gone, upto
        words = f"SELECT seq, {COLUMNS} FROM event WHERE seq > ? AND seq <= ? AND {_COPIED} ORDER BY seq LIMIT ?"  # noqa: S608
        most = MOST_EVENTS - len(put)
        for seq, *row in db.execute(words, (self._sent, self._top, most)):
            if (free := free - _measure(event := read_event(tuple(row)))) < 0 and put:
                return put, gone, upto
            put.append(event)
            upto, most = seq, most - 1
        return put, gone, self._top if most else upto


def _measure(event: Event) -> int:
    return _EACH_BYTES + len(event.payload) + len(event.context) + len(event.error)


def _run(db: sqlite3.Connection, statements: tuple[str, ...]) -> None:
    for statement in statements:
        db.execute(statement)
