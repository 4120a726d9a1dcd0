"""The tables, and the one row of facts about the whole store.

Every value is written once, as a ``version``; the versions in order of position are the log. ``latest`` points at the
version each living key has now, and each version at the one it replaced, so an older instant is found by stepping back.
Trimming removes versions that were replaced, and marks of deletion, once they are older than what is kept.

A position is the revision and the place within its commit in one integer, so the log needs no second index.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from weft.contracts.store import MAX_WRITES
from weft.objects.errors import StoreUnavailable

APPLICATION_ID = 0x77656674  # "weft": marks a store among SQLite files
SCHEMA = 1

_PLACE_BITS = 7
assert MAX_WRITES <= 1 << _PLACE_BITS

_TABLES = """
CREATE TABLE version(
    position INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    previous INTEGER,             -- position of the version it replaced; NULL when the key was absent
    value BLOB                    -- NULL: the key was deleted
) STRICT;
CREATE TABLE latest(key TEXT PRIMARY KEY, position INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE idempotency(key TEXT PRIMARY KEY, revision INTEGER NOT NULL, turn INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_turn ON idempotency(turn);
CREATE TABLE state(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch TEXT NOT NULL,
    session TEXT NOT NULL,        -- random, new at each opening; beside the file too, to notice an older file put back
    revision INTEGER NOT NULL,    -- of the newest commit
    compacted INTEGER NOT NULL,   -- history up to here is forgotten …
    trimmed INTEGER NOT NULL,     -- … and its rows removed up to this position
    fence_ceiling INTEGER NOT NULL,
    turn INTEGER NOT NULL         -- counts the hours of idempotency keys
) STRICT;
"""


def position_of(revision: int, place: int = 0) -> int:
    return revision << _PLACE_BITS | place


def end_of(revision: int) -> int:
    """The last position a commit of this revision could have."""
    return position_of(revision, (1 << _PLACE_BITS) - 1)


def revision_at(position: int) -> int:
    return position >> _PLACE_BITS


@dataclass(slots=True)
class State:
    """The store's one row of facts."""

    epoch: str
    session: str
    revision: int = 0
    compacted: int = 0
    trimmed: int = end_of(0)
    fence_ceiling: int = 0
    turn: int = 0


def load_state(connection: sqlite3.Connection) -> State:
    row = connection.execute(
        "SELECT epoch, session, revision, compacted, trimmed, fence_ceiling, turn FROM state WHERE id = 1"
    ).fetchone()
    if row is None:
        raise StoreUnavailable("the store file is damaged: its state is missing", hint="restore a backup")
    return State(*row)


def save_state(connection: sqlite3.Connection, state: State) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO state(id, epoch, session, revision, compacted, trimmed, fence_ceiling, turn)"
        " VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
        (
            state.epoch,
            state.session,
            state.revision,
            state.compacted,
            state.trimmed,
            state.fence_ceiling,
            state.turn,
        ),
    )


def is_empty(connection: sqlite3.Connection) -> bool:
    return int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]) == 0


def create_tables(connection: sqlite3.Connection, state: State) -> None:
    """Make an empty file a store, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")
    save_state(connection, state)
    connection.execute("COMMIT")


def check_tables(connection: sqlite3.Connection, path: str) -> None:
    """Raises StoreUnavailable unless this is a store of a schema that is understood here."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreUnavailable(f"{path} is not a weft store", hint="name another file")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > SCHEMA:
        raise StoreUnavailable(f"{path} was written by a newer weft (schema {found}, known {SCHEMA})", hint="upgrade")
