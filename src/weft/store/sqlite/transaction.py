"""One transaction of the writer: several commits, each checked in full before its first write.

Reads the database on the writer's connection, each key once; what the commits come to is written together, by ``flush``. Nothing
is told to anyone until the writer has committed it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace

from weft.contracts.store import Change, Precondition, Put, Write
from weft.store.preconditions import find_failed
from weft.store.sqlite.schema import State, end_of, position_of, revision_at

_SLACK = 10  # history may outgrow what is kept by a tenth before it is cut: cutting in steps is cheaper
_IDEMPOTENCY_BITE = 500


class Transaction:
    """``state`` is this transaction's own copy; ``published`` the commits it made, for the watches."""

    def __init__(self, connection: sqlite3.Connection, state: State, holds: Callable[[str, int], bool]) -> None:
        self._connection = connection
        self._holds = holds
        self.state = replace(state)
        self.published: list[tuple[int, list[Change]]] = []
        self.bytes = 0
        self._versions: list[tuple[int, str, int | None, bytes | None]] = []
        self._heads: dict[str, tuple[int, bytes] | None] = {}  # the newest of each key that is written: position, value
        self._moved: dict[str, int | None] = {}  # where it is from now on

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
        more_keys = self._trim_idempotency()
        end = end_of(state.compacted)
        if state.trimmed >= end:
            return more_keys
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
        return more_keys or row is not None

    def _trim_idempotency(self) -> bool:
        cursor = self._connection.execute(
            "DELETE FROM idempotency WHERE key IN (SELECT key FROM idempotency WHERE turn < ? LIMIT ?)",
            (self.state.turn - 1, _IDEMPOTENCY_BITE),
        )
        return cursor.rowcount == _IDEMPOTENCY_BITE

    def flush(self) -> None:
        """Write what the commits came to."""
        many = self._connection.executemany
        many("INSERT INTO version(position, key, previous, value) VALUES (?, ?, ?, ?)", self._versions)
        put = [(key, position) for key, position in self._moved.items() if position is not None]
        gone = [(key,) for key, position in self._moved.items() if position is None]
        many("INSERT OR REPLACE INTO latest(key, position) VALUES (?, ?)", put)
        if gone:
            many("DELETE FROM latest WHERE key = ?", gone)

    def _head_of(self, key: str) -> tuple[int, bytes] | None:
        if key not in self._heads:
            self._heads[key] = self._connection.execute(
                "SELECT version.position, version.value FROM latest JOIN version USING (position) WHERE latest.key = ?",
                (key,),
            ).fetchone()
        return self._heads[key]

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
            self._moved[key] = None if value is None else position
            self.bytes += len(key) + len(value or b"")
            changes.append(Change(key, value, previous))
        return changes
