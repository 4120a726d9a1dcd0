"""Copies of events of other servers' gateways, beside this gateway's own queue, which they join when their owner is gone. Each
method returns once its changes are on the disk, and raises Unavailable if they can't be written.

An owner counts its eras: a new one begins with each start, and with each change of the gateway that has its copies. ``since``
is the era in which this gateway was chosen: copies from before are worth nothing."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import COLUMNS, INSERT, Event, read_event

MOST_COPIES = 1_000_000  # of one owner
MOST_PAGE_BYTES = 2 << 20  # of payloads
_AT_ONCE = 500


class CopyBatch(msgspec.Struct, frozen=True, kw_only=True):
    """``begins``: the first one of its era; ``whole``: with it there are copies of all events."""

    owner: str
    era: int
    since: int
    begins: bool
    whole: bool
    put: list[Event] = []
    gone: list[str] = []


class CopyAnswer(msgspec.Struct, frozen=True):
    """Not ``kept``: for the reason ``problem``, or, if that is "", because the owner must begin an era after ``era``."""

    kept: bool
    era: int = 0
    problem: str = ""


EventKind = Literal["event", "copy"]


class EventPage(msgspec.Struct, frozen=True):
    """Some events, the place of the last one, and whether there may be more."""

    events: list[Event]
    last: int
    more: bool


class Owner(NamedTuple):
    """``era`` of its newest copies."""

    name: str
    era: int
    since: int


class KeptCopies:
    def __init__(self, file: EventFile) -> None:
        self._file = file
        self._counts: dict[str, int] = {}  # at most so many copies, by owner

    async def keep(self, batch: CopyBatch) -> CopyAnswer:
        """Keep an owner's changes. Without space for more events, only remove those that are gone."""
        return await self._file.do(lambda db: self._keep(db, batch))

    async def accept(self, event: Event) -> bool:
        """Put an event into the own queue, unless it is another gateway's that it has a copy of, or was; whether it did. A caller
        repeats an invocation here when the gateway that accepted it dies before it answers."""

        def work(db: sqlite3.Connection) -> bool:
            for table in ("copy", "taken"):
                if db.execute(f"SELECT 1 FROM {table} WHERE id = ?", (event.id,)).fetchone():  # noqa: S608 (ours)
                    return False
            db.execute(INSERT, msgspec.structs.astuple(event))
            return True

        return await self._file.do(work)

    async def list_owners(self) -> list[Owner]:
        """The owners whose copies weren't taken over."""
        words = "SELECT name, era, since FROM owner WHERE era > taken"
        return [Owner(*row) for row in await self._file.do(lambda db: db.execute(words).fetchall())]

    async def take_over(self, owner: Owner, era: int) -> Counter[tuple[str, str]]:
        """Put an owner's copies into the own queue; how many wait there, by project and function. The owner has come as far as
        ``era``."""
        return await self._file.do(lambda db: _take_over(db, owner.name, max(era, owner.era)))

    async def drop(self, owner: Owner) -> None:
        """Another gateway has the copies."""

        def work(db: sqlite3.Connection) -> None:
            if db.execute("DELETE FROM owner WHERE name = ? AND since = ?", (owner.name, owner.since)).rowcount:
                db.execute("DELETE FROM copy WHERE owner = ?", (owner.name,))

        await self._file.do(work)

    async def find_taken(self, owner: str, ids: Sequence[str]) -> list[str]:
        """Those of an owner's events that were taken over."""
        words = "SELECT id FROM taken WHERE owner = ? AND id IN (SELECT value FROM json_each(?))"
        values = owner, msgspec.json.encode(ids).decode()
        return [id for (id,) in await self._file.do(lambda db: db.execute(words, values).fetchall())]

    async def forget_taken(self, owner: str) -> None:
        """The owner won't ask for what was taken over any more."""
        await self._file.do(lambda db: db.execute("DELETE FROM taken WHERE owner = ?", (owner,)))

    async def read(self, kind: EventKind, after: int) -> EventPage:
        """Read own events, or copies, after a place: AT_ONCE at most, and not many bytes."""
        return await self._file.do(lambda db: _read(db, kind, after))

    def _keep(self, db: sqlite3.Connection, batch: CopyBatch) -> CopyAnswer:
        found = db.execute("SELECT era, since, taken FROM owner WHERE name = ?", (batch.owner,)).fetchone()
        era, since, taken = found or (0, 0, 0)
        if batch.era < era or batch.era <= taken or (batch.era > era and not batch.begins):
            return CopyAnswer(False, max(era, taken))
        if batch.since > since:
            db.execute("DELETE FROM copy WHERE owner = ?", (batch.owner,))
            self._counts[batch.owner] = 0
        db.executemany("DELETE FROM copy WHERE owner = ? AND id = ?", [(batch.owner, id) for id in batch.gone])
        if (count := self._count_with(db, batch)) > MOST_COPIES:
            return CopyAnswer(False, problem=f"it has {count - len(batch.put)} copies of this gateway's events already")
        self._counts[batch.owner] = count
        db.execute("INSERT OR REPLACE INTO owner VALUES (?, ?, ?, ?)", (batch.owner, batch.era, batch.since, taken))
        rows = [(batch.owner, event.id, batch.era, msgspec.msgpack.encode(event)) for event in batch.put]
        db.executemany("INSERT OR REPLACE INTO copy VALUES (?, ?, ?, ?)", rows)
        if batch.whole:
            db.execute("DELETE FROM copy WHERE owner = ? AND era < ?", (batch.owner, batch.era))
        return CopyAnswer(True)

    def _count_with(self, db: sqlite3.Connection, batch: CopyBatch) -> int:
        """How many copies there are with those of ``batch``, or a larger number: they are counted when there may be too many."""
        count = self._counts.get(batch.owner, MOST_COPIES) + len(batch.put)
        if count > MOST_COPIES:
            (there,) = db.execute("SELECT COUNT(*) FROM copy WHERE owner = ?", (batch.owner,)).fetchone()
            count = there + len(batch.put)
        return count


def _read(db: sqlite3.Connection, kind: EventKind, after: int) -> EventPage:
    events, last, free = list[Event](), after, MOST_PAGE_BYTES
    if kind == "event":
        rows = db.execute(f"SELECT seq, {COLUMNS} FROM event WHERE seq > ? ORDER BY seq LIMIT ?", (after, _AT_ONCE))  # noqa: S608 (ours)
        found = ((place, read_event(tuple(row))) for place, *row in rows)
    else:
        rows = db.execute("SELECT rowid, event FROM copy WHERE rowid > ? ORDER BY rowid LIMIT ?", (after, _AT_ONCE))
        found = ((place, msgspec.msgpack.decode(event, type=Event)) for place, event in rows)
    for place, event in found:
        if events and (free := free - len(event.payload)) < 0:
            return EventPage(events, last, True)
        events.append(event)
        last = place
    return EventPage(events, last, len(events) == _AT_ONCE)


def _take_over(db: sqlite3.Connection, owner: str, era: int) -> Counter[tuple[str, str]]:
    waiting, last = Counter[tuple[str, str]](), ""
    words = "SELECT id, event FROM copy WHERE owner = ? AND id > ? ORDER BY id LIMIT ?"
    while rows := db.execute(words, (owner, last, _AT_ONCE)).fetchall():
        events = [msgspec.msgpack.decode(event, type=Event) for _, event in rows]
        db.executemany(INSERT, [msgspec.structs.astuple(event) for event in events])
        db.executemany("INSERT OR IGNORE INTO taken VALUES (?, ?)", [(event.id, owner) for event in events])
        waiting.update((event.project, event.name) for event in events if event.dead_at is None)
        last = rows[-1][0]
    db.execute("DELETE FROM copy WHERE owner = ?", (owner,))
    db.execute("UPDATE owner SET era = ?, taken = ? WHERE name = ?", (era, era, owner))
    return waiting
