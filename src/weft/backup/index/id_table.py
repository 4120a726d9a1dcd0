"""A set of ids that may be larger than memory, in a temporary SQLite file that goes with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from types import TracebackType

_PART = 256


class IdTable:
    """Ids, each with the number of the one that claimed it, or ``SHARED``."""

    SHARED = 0

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("CREATE TABLE owner (id BLOB PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def claim(self, id_: bytes, number: int) -> int | None:
        """Claim the id. Returns who had it before: nobody, ``number`` itself, or else it is shared from now on."""
        row = self._db.execute("SELECT number FROM owner WHERE id = ?", (id_,)).fetchone()
        if row is None:
            self._db.execute("INSERT INTO owner VALUES (?, ?)", (id_, number))
            return None
        before = int(row[0])
        if before not in (number, self.SHARED):
            self._db.execute("UPDATE owner SET number = ? WHERE id = ?", (self.SHARED, id_))
        return before

    def add(self, id_: bytes) -> bool:
        """Whether it is new."""
        return self._db.execute("INSERT OR IGNORE INTO owner VALUES (?, 1)", (id_,)).rowcount == 1

    def take(self, ids: Sequence[bytes], number: int) -> int:
        """Give those of ``ids`` (some hundred) that ``add`` brought and nobody took yet to ``number``; how many they are."""
        marks = ",".join("?" * len(ids))
        return self._db.execute(
            f"UPDATE owner SET number = ? WHERE number = 1 AND id IN ({marks})",  # noqa: S608 - question marks
            (number, *ids),
        ).rowcount

    def among(self, ids: Sequence[bytes], number: int) -> set[bytes]:
        """Those of ``ids`` that are ``number``'s."""
        marks = ",".join("?" * len(ids))
        rows = self._db.execute(
            f"SELECT id FROM owner WHERE number = ? AND id IN ({marks})",  # noqa: S608 - question marks
            (number, *ids),
        )
        return {id_ for (id_,) in rows}

    def owned(self) -> Iterator[list[tuple[bytes, int]]]:
        """Ids that one alone claimed, in parts."""
        rows = self._db.execute("SELECT id, number FROM owner WHERE number != ?", (self.SHARED,))
        while part := rows.fetchmany(_PART):
            yield part

    def __enter__(self) -> IdTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()
