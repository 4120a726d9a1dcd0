"""The embedded store: one SQLite file, one writing thread that commits in groups, a few reading threads."""

from weft.store.sqlite.refill import SqliteRefill
from weft.store.sqlite.store import SqliteStore

__all__ = ["SqliteRefill", "SqliteStore"]
