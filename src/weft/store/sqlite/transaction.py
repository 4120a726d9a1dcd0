"""One transaction of the writer: several commits, each checked in full before its first write.

Reads and writes the database on the writer's connection. Nothing is told to anyone until the writer has committed it.
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
        self.rows = 0
        self.bytes = 0

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

    def _revision_of(self, key: str) -> int | None:
        row = self._connection.execute("SELECT position FROM latest WHERE key = ?", (key,)).fetchone()
        return None if row is None else revision_at(row[0])

    def _write(self, writes: Sequence[Write]) -> list[Change]:
        """Write versions at the next revision; a delete of an absent key changes nothing."""
        execute = self._connection.execute
        revision = self.state.revision + 1
        changes: list[Change] = []
        versions: list[tuple[int, str, int | None, bytes | None]] = []
        moved: list[tuple[str, int]] = []
        for write in writes:
            key = write.key
            found = execute(
                "SELECT version.position, version.value FROM latest JOIN version USING (position) WHERE latest.key = ?",
                (key,),
            ).fetchone()
            position = position_of(revision, len(changes))
            replaced, previous = found if found is not None else (None, None)
            if isinstance(write, Put):
                value = write.value
                versions.append((position, key, replaced, value))
                moved.append((key, position))
                changes.append(Change(key, value, previous))
            elif found is not None:
                versions.append((position, key, replaced, None))
                execute("DELETE FROM latest WHERE key = ?", (key,))
                changes.append(Change(key, None, previous))
        if changes:
            many = self._connection.executemany
            many("INSERT INTO version(position, key, previous, value) VALUES (?, ?, ?, ?)", versions)
            many("INSERT OR REPLACE INTO latest(key, position) VALUES (?, ?)", moved)
            self.rows += len(versions)
            self.bytes += sum(len(key) + len(value or b"") for _, key, _, value in versions)
        return changes
