"""One transaction of the writer: several commits, each checked in full before its first write.

Reads the database on the writer's connection, and only what the writer doesn't know of former transactions; what the commits come
to is written together, by ``flush``. Nobody learns of it until the writer has committed it.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from weft.contracts.store import Change, Precondition, Put, Write
from weft.store.limits import find_failed
from weft.store.sqlite.bounded import Bounded
from weft.store.sqlite.schema import State, end_of, position_of, revision_at

_SLACK = 10  # history may outgrow what is kept by a tenth before it is cut: cutting in steps is cheaper
_IDEMPOTENCY_BITE = 500
_TOGETHER = 32  # rows in one statement: each step of SQLite's gives the interpreter up, and then waits to have it back

Head = tuple[int, bytes]  # the newest version of a key: its position and value


class Transaction:
    """``state`` is this transaction's own copy; ``published`` the commits it made, for the watches. ``known`` are heads as
    they were committed, None for a key that is absent."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        state: State,
        known: Bounded[Head | None],
        holds: Callable[[str, int], bool],
    ) -> None:
        self._connection = connection
        self._known = known
        self._holds = holds
        self.state = replace(state)
        self.published: list[tuple[int, list[Change]]] = []
        self.bytes = 0
        self._versions: list[tuple[int, str, int | None, bytes | None]] = []
        self._heads: dict[str, Head | None] = {}  # of what is written, as it is from now on

    @property
    def rows(self) -> int:
        """Written so far."""
        return len(self._versions)

    def commit(
        self, writes: Sequence[Write], preconditions: Sequence[Precondition], idempotency_key: str | None
    ) -> int:
        """The contract's ``commit``, but for durability."""
        execute = self._connection.execute
        if idempotency_key is not None:
            row = execute("SELECT revision FROM idempotency WHERE key = ?", (idempotency_key,)).fetchone()
            if row is not None:
                return int(row[0])
        failed = find_failed(preconditions, self._revision_of, self._holds)
        if failed is not None:
            raise failed
        changes = self._write(writes)
        if changes:
            self.state.revision += 1
            self.published.append((self.state.revision, changes))
        if idempotency_key is not None:
            execute(
                "INSERT INTO idempotency(key, revision, turn) VALUES (?, ?, ?)",
                (idempotency_key, self.state.revision, self.state.turn),
            )
        return self.state.revision

    def compact(self, keep_revisions: int) -> None:
        """Forget history at once; its rows go later, a bite at a time."""
        self.state.compacted = max(self.state.compacted, self.state.revision - max(0, keep_revisions))

    def reserve_fences(self, count: int) -> int:
        """Raise the ceiling that fences may grow to, and return it."""
        self.state.fence_ceiling += count
        return self.state.fence_ceiling

    def turn_idempotency(self) -> None:
        """Called each hour: keys of the hour before the last are no longer kept."""
        self.state.turn += 1

    def trim(self, keep_revisions: int, oldest: int, bite_rows: int) -> bool:
        """Forget what is beyond ``keep_revisions`` or before revision ``oldest``, and remove at most about
        ``bite_rows`` rows that nothing needs any more; True if more are left."""
        state = self.state
        state.compacted = max(state.compacted, oldest)
        if state.revision - state.compacted > keep_revisions + keep_revisions // _SLACK:
            state.compacted = state.revision - keep_revisions
        end = end_of(state.compacted)
        if state.trimmed >= end:
            return False
        execute = self._connection.execute
        row = execute(
            "SELECT position FROM version WHERE position > ? AND position <= ? ORDER BY position LIMIT 1 OFFSET ?",
            (state.trimmed, end, bite_rows),
        ).fetchone()
        reach = (state.trimmed, end if row is None else row[0])
        execute(
            "DELETE FROM version WHERE position IN"
            " (SELECT previous FROM version WHERE position > ? AND position <= ? AND previous IS NOT NULL)",
            reach,
        )
        execute("DELETE FROM version WHERE position > ? AND position <= ? AND value IS NULL", reach)
        state.trimmed = reach[1]
        return row is not None

    def trim_idempotency(self) -> bool:
        """Remove some keys that are no longer kept; True if more are left."""
        cursor = self._connection.execute(
            "DELETE FROM idempotency WHERE key IN (SELECT key FROM idempotency WHERE turn < ? LIMIT ?)",
            (self.state.turn - 1, _IDEMPOTENCY_BITE),
        )
        return cursor.rowcount == _IDEMPOTENCY_BITE

    def flush(self) -> None:
        """Write what the commits came to."""
        heads = self._heads.items()
        self._insert(_insert_versions, self._versions)
        self._insert(_insert_latest, [(key, head[0]) for key, head in heads if head is not None])
        gone = [(key,) for key, head in heads if head is None]
        if gone:
            self._connection.executemany("DELETE FROM latest WHERE key = ?", gone)

    def learn(self) -> None:
        """It was committed: what it wrote is known from now on."""
        for key, head in self._heads.items():
            self._known.put(key, head, 0 if head is None else len(head[1]))

    def _insert(self, statement: Callable[[int], str], rows: Sequence[Iterable[Any]]) -> None:
        for start in range(0, len(rows), _TOGETHER):
            part = rows[start : start + _TOGETHER]
            self._connection.execute(statement(len(part)), [value for row in part for value in row])

    def _head_of(self, key: str) -> Head | None:
        if key in self._heads:
            return self._heads[key]
        known: Head | Literal["unknown"] | None = self._known.find(key, "unknown")
        if known != "unknown":
            return known
        head: Head | None = self._connection.execute(
            "SELECT version.position, version.value FROM latest JOIN version USING (position) WHERE latest.key = ?",
            (key,),
        ).fetchone()
        self._known.put(key, head, 0 if head is None else len(head[1]))
        return head

    def _revision_of(self, key: str) -> int | None:
        head = self._head_of(key)
        return None if head is None else revision_at(head[0])

    def _write(self, writes: Sequence[Write]) -> list[Change]:
        """Versions at the next revision; a delete of an absent key changes nothing."""
        revision = self.state.revision + 1
        changes: list[Change] = []
        for write in writes:
            key = write.key
            head = self._head_of(key)
            value = write.value if isinstance(write, Put) else None
            if head is None and value is None:
                continue
            position = position_of(revision, len(changes))
            replaced, previous = head if head is not None else (None, None)
            self._versions.append((position, key, replaced, value))
            self._heads[key] = None if value is None else (position, value)
            self.bytes += len(key) + len(value or b"")
            changes.append(Change(key, value, previous))
        return changes


@functools.cache
def _insert_versions(count: int) -> str:
    return f"INSERT INTO version(position, key, previous, value) VALUES {_places('(?, ?, ?, ?)', count)}"  # noqa: S608 (ours)


@functools.cache
def _insert_latest(count: int) -> str:
    return f"INSERT OR REPLACE INTO latest(key, position) VALUES {_places('(?, ?)', count)}"  # noqa: S608 (ours)


def _places(row: str, count: int) -> str:
    return ", ".join([row] * count)
