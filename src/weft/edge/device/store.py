"""The gateway's file: twins, and the objects that it works by while the server can't be reached. SQLite; from any thread.

A kill at any moment loses at most what came since the last save. A file that can't be read is put aside, and a new one begun: the
server has the objects, and the devices will speak again.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from weft.contracts.durable_file import make_private
from weft.edge.device.twin import KeptTwin
from weft.edge.model.engine import Ran
from weft.edge.rule.engine import Fired

FILE = "gateway.db"
_SCHEMA = """
create table if not exists twin (uid text primary key, body blob not null) without rowid;
create table if not exists object (kind text, key text, body blob not null, primary key (kind, key)) without rowid;
create table if not exists hash (username text primary key, hash text not null) without rowid;
"""
_FIRED, _RAN = "fired", "ran"
_decoder = msgspec.json.Decoder(KeptTwin)

log = logging.getLogger("weft.edge.store")


class TwinStore:
    def __init__(self, folder: Path) -> None:
        """Opens the file in ``folder``. Raises OSError, sqlite3.Error where there is no way to have one."""
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        try:
            self._base = _open(self._path)
        except sqlite3.DatabaseError as problem:
            aside = self._path.with_suffix(".broken")
            log.error("%s can't be read (%s); it is kept as %s, and a new one begins", self._path, problem, aside.name)
            self._path.replace(aside)
            for rest in ("-wal", "-shm"):
                self._path.with_name(FILE + rest).unlink(missing_ok=True)
            self._base = _open(self._path)

    def load_twins(self) -> dict[str, KeptTwin]:
        """All twins by the uid of their device; one that can't be read is left out."""
        found = {}
        for uid, body in self._base.execute("select uid, body from twin"):
            with contextlib.suppress(msgspec.DecodeError):
                found[str(uid)] = _decoder.decode(body)
        return found

    def load_fired(self) -> dict[str, Fired]:
        """How often rules fired, by uid."""
        return {uid: msgspec.json.decode(body, type=Fired) for uid, body in self.load_objects(_FIRED).items()}

    def load_ran(self) -> dict[str, Ran]:
        """How often models ran, by uid."""
        return {uid: msgspec.json.decode(body, type=Ran) for uid, body in self.load_objects(_RAN).items()}

    def save_twins(
        self,
        twins: Mapping[str, bytes],
        gone: Iterable[str] = (),
        fired: Mapping[str, bytes] | None = None,
        ran: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write those, as JSON of KeptTwin, and forget those that are ``gone``: all or nothing. Before that ``fired``, of all
        rules, and ``ran``, of all models."""
        if fired is not None:
            self.save_objects(_FIRED, fired)
        if ran is not None:
            self.save_objects(_RAN, ran)
        with self._lock, self._base:
            self._base.executemany("insert or replace into twin values (?, ?)", twins.items())
            self._base.executemany("delete from twin where uid = ?", [(uid,) for uid in gone])

    def load_objects(self, kind: str) -> dict[str, bytes]:
        with self._lock:
            return self._load_objects(kind)

    def _load_objects(self, kind: str) -> dict[str, bytes]:
        rows = self._base.execute("select key, body from object where kind = ?", (kind,))
        return {str(key): bytes(body) for key, body in rows}

    def save_objects(self, kind: str, objects: Mapping[str, bytes]) -> None:
        """These are all objects of ``kind`` now."""
        with self._lock, self._base:
            before = self._load_objects(kind)
            changed = [(kind, key, body) for key, body in objects.items() if before.get(key) != body]
            self._base.executemany("insert or replace into object values (?, ?, ?)", changed)
            gone = [(kind, key) for key in before.keys() - objects.keys()]
            self._base.executemany("delete from object where kind = ? and key = ?", gone)

    def load_hashes(self) -> dict[str, str]:
        """Hashes of the devices' passwords, by username: the passwords themselves are never written."""
        return {str(user): str(hashed) for user, hashed in self._base.execute("select username, hash from hash")}

    def save_hashes(self, hashes: Mapping[str, str]) -> None:
        with self._lock, self._base:
            self._base.execute("delete from hash")
            self._base.executemany("insert into hash values (?, ?)", hashes.items())

    def close(self) -> None:
        self._base.close()


def _open(path: Path) -> sqlite3.Connection:
    make_private(path)
    base = sqlite3.connect(path, check_same_thread=False)
    try:
        base.execute("pragma journal_mode = wal")
        base.execute("pragma synchronous = normal")
        base.execute("pragma journal_size_limit = 8388608")
        base.execute("pragma cache_size = -1024")
        base.executescript(_SCHEMA)
        base.execute("select count(*) from twin").fetchone()
    except BaseException:
        base.close()
        raise
    return base
