"""When each schedule was last fired, kept with the events that it made. As ``queue.py``: durable on return."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import INSERT, Event

_FIRED = "INSERT INTO fired VALUES (?, ?, ?) ON CONFLICT (function, entry) DO UPDATE SET last = excluded.last"


class ScheduleState:
    def __init__(self, file: EventFile) -> None:
        self._file = file

    async def fire(self, event: Event, function: str, entry: str, last: float) -> None:
        """Accept a schedule's event, and record the run: both or neither."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(INSERT, msgspec.structs.astuple(event))
            db.execute(_FIRED, (function, entry, last))

        await self._file.do(work)

    async def begin(self, function: str, entry: str, at: float) -> None:
        """Count a schedule's runs from ``at`` on, unless they are counted already."""
        await self._file.do(
            lambda db: db.execute("INSERT OR IGNORE INTO fired VALUES (?, ?, ?)", (function, entry, at))
        )

    async def known(self) -> dict[tuple[str, str], float]:
        """When each schedule was last fired, by function (uid) and entry."""
        rows = await self._file.do(lambda db: db.execute("SELECT function, entry, last FROM fired").fetchall())
        return {(function, entry): last for function, entry, last in rows}

    async def forget(self, keys: Iterable[tuple[str, str]]) -> None:
        rows = list(keys)
        await self._file.do(lambda db: db.executemany("DELETE FROM fired WHERE function = ? AND entry = ?", rows))
