"""The queue of events. Each method returns once its changes are on the disk, and raises Unavailable if they can't be written.
Events that are held (``event_copies``) aren't in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from weft.gateway.function_events.file import EventFile

Origin = Literal["invoke", "schedule", "deadletter", "device"]
COLUMNS = "id, project, name, qualifier, payload, context, origin, accepted_at, due_at, tries, dead_at, error_type, error, node"


INSERT = f"INSERT OR IGNORE INTO event ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"  # noqa: S608 (COLUMNS are ours)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One asynchronous invocation."""

    id: str
    project: str
    name: str
    qualifier: str = ""
    payload: bytes = b""
    context: str = ""
    origin: Origin = "invoke"
    accepted_at: float
    due_at: float
    tries: int = 0  # that failed
    dead_at: float | None = None  # since when it is a dead letter
    error_type: str = ""
    error: str = ""
    node: str = ""  # uid of the node that it came from; "" if unknown


class Backlog(msgspec.Struct, frozen=True):
    """One function's waiting events."""

    project: str
    name: str
    count: int
    due_at: float  # the first one


class EventQueue:
    def __init__(self, file: EventFile) -> None:
        self._file = file

    async def add(self, events: Iterable[Event]) -> int:
        """Accept them; how many are new. One with an id that is there already stays as it is."""
        rows = [msgspec.structs.astuple(event) for event in events]
        return await self._file.do(lambda db: db.executemany(INSERT, rows).rowcount)

    async def standings(self) -> list[Backlog]:
        rows = await self._file.do(
            lambda db: db.execute(
                "SELECT project, name, COUNT(*), MIN(due_at) FROM event WHERE dead_at IS NULL AND held = ''"
                " GROUP BY project, name"
            ).fetchall()
        )
        return [Backlog(*row) for row in rows]

    async def has_any(self) -> bool:
        """Whether there are events, or dead letters."""
        return bool(await self._file.do(lambda db: db.execute("SELECT 1 FROM event LIMIT 1").fetchone()))

    async def is_dead(self, id: str) -> bool:
        """Whether it is a dead letter."""
        return bool(await select(self._file, "id = ? AND dead_at IS NOT NULL", (id,)))

    async def due(self, project: str, name: str, most: int) -> list[Event]:
        """A function's waiting events, in the order in which they are due."""
        return await select(
            self._file,
            "project = ? AND name = ? AND dead_at IS NULL AND held = '' ORDER BY due_at, seq LIMIT ?",
            (project, name, most),
        )

    async def done(self, id: str) -> None:
        await self._file.do(lambda db: db.execute("DELETE FROM event WHERE id = ?", (id,)))

    async def again(self, id: str, *, tries: int, due_at: float, error_type: str, error: str) -> None:
        """It failed; run it again at ``due_at``."""
        values = (tries, due_at, error_type, error, id)
        await self._file.do(
            lambda db: db.execute("UPDATE event SET tries=?, due_at=?, error_type=?, error=? WHERE id = ?", values)
        )

    async def bury(self, id: str, *, tries: int, at: float, error_type: str, error: str) -> None:
        """Make it a dead letter."""
        values = (tries, at, error_type, error, id)
        await self._file.do(
            lambda db: db.execute("UPDATE event SET tries=?, dead_at=?, error_type=?, error=? WHERE id = ?", values)
        )

    async def hand_over(self, id: str, to: Event) -> None:
        """Remove it, and accept ``to`` in its place: both or neither."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(INSERT, msgspec.structs.astuple(to))  # first: copies follow in this order
            db.execute("DELETE FROM event WHERE id = ?", (id,))

        await self._file.do(work)


async def select(file: EventFile, where: str, values: tuple[Any, ...]) -> list[Event]:
    """The events that meet the SQL condition ``where``."""
    words = f"SELECT {COLUMNS} FROM event WHERE {where}"  # noqa: S608 (both are ours; what is another's is in values)
    return [read_event(row) for row in await file.do(lambda db: db.execute(words, values).fetchall())]


def read_event(row: tuple[Any, ...]) -> Event:
    """Read a row of COLUMNS."""
    return Event(**dict(zip(Event.__struct_fields__, row, strict=True)))
