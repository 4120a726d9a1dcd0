"""Events of this gateway that another one has taken over, perhaps: nobody runs them here until that one was asked."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

from weft.gateway.function_events.file import EventFile

AT_ONCE = 500


class HeldEvents:
    def __init__(self, file: EventFile) -> None:
        self._file = file

    async def hold(self, taker: str) -> None:
        """Hold all events that are there until ``taker`` was asked."""
        await self._file.do(lambda db: db.execute("UPDATE event SET held = ? WHERE held = ''", (taker,)))

    async def list_takers(self) -> list[str]:
        return [
            name
            for (name,) in await self._file.do(
                lambda db: db.execute("SELECT DISTINCT held FROM event WHERE held <> ''").fetchall()
            )
        ]

    async def list_some(self, taker: str) -> list[str]:
        """The ids of some events that are held, AT_ONCE at most; none if none are."""
        words, values = "SELECT id FROM event WHERE held = ? ORDER BY seq LIMIT ?", (taker, AT_ONCE)
        return [id for (id,) in await self._file.do(lambda db: db.execute(words, values).fetchall())]

    async def settle(self, ids: Sequence[str], taken: Sequence[str]) -> Counter[tuple[str, str]]:
        """Settle ``ids``: those ``taken`` are another gateway's: remove them. The others are free; how many wait, by project and
        function."""

        def work(db: sqlite3.Connection) -> Counter[tuple[str, str]]:
            db.executemany("DELETE FROM event WHERE id = ?", [(id,) for id in taken])
            free, waiting = set(ids) - set(taken), Counter[tuple[str, str]]()
            for id in free:
                db.execute("UPDATE event SET held = '' WHERE id = ?", (id,))
                found = db.execute("SELECT project, name FROM event WHERE id = ? AND dead_at IS NULL", (id,))
                waiting.update(found.fetchall())
            return waiting

        return await self._file.do(work)
