"""Events that failed for good, kept for people to inspect. As ``queue.py``: durable on return."""

from __future__ import annotations

from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import Event, select

LetterPlace = tuple[float, str]  # in a list: since when it is one, and its id
NEWEST: LetterPlace = (1e300, "")


class DeadLetters:
    def __init__(self, file: EventFile) -> None:
        self._file = file

    async def dead(self, project: str, name: str, most: int, after: LetterPlace = NEWEST) -> list[Event]:
        """A function's dead letters, newest first, those after the place ``after``."""
        return await select(
            self._file,
            "project = ? AND name = ? AND dead_at IS NOT NULL AND held = '' AND (dead_at, id) < (?, ?)"
            " ORDER BY dead_at DESC, id DESC LIMIT ?",
            (project, name, *after, most),
        )

    async def find_dead(self, id: str) -> float | None:
        """The time since which it is a dead letter (unix seconds); None if it isn't one."""
        found = await select(self._file, "id = ? AND dead_at IS NOT NULL AND held = ''", (id,))
        return found[0].dead_at if found else None

    async def redrive(self, project: str, name: str, at: float) -> int:
        """Put all of a function's dead letters into the queue, as if they were accepted now; how many. One of a schedule is
        in the store no more (``schedule_state.py``): it runs like any other."""
        values = (at, at, project, name)
        return await self._file.do(
            lambda db: (
                db.execute(
                    "UPDATE event SET dead_at=NULL, tries=0, accepted_at=?, due_at=?, error='', error_type='',"
                    " origin=CASE origin WHEN 'schedule' THEN 'invoke' ELSE origin END"
                    " WHERE project = ? AND name = ? AND dead_at IS NOT NULL AND held = ''",
                    values,
                ).rowcount
            )
        )

    async def purge(self, project: str, name: str) -> int:
        """Delete all of a function's dead letters; how many."""
        return await self._file.do(
            lambda db: (
                db.execute(
                    "DELETE FROM event WHERE project = ? AND name = ? AND dead_at IS NOT NULL AND held = ''",
                    (project, name),
                ).rowcount
            )
        )

    async def drop_old(self, before: float) -> int:
        """Delete dead letters from before ``before``; how many."""
        return await self._file.do(
            lambda db: db.execute("DELETE FROM event WHERE dead_at IS NOT NULL AND dead_at < ?", (before,)).rowcount
        )
