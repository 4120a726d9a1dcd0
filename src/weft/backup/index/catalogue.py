"""Catalogue of chunks' places: a copy of all packs' indexes in a local SQLite file. It may be lost: the repository has it all."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from weft.backup.errors import ObjectMissing
from weft.backup.format import (
    FRAME_HEAD_LIMIT,
    PACK_START,
    PackFrame,
    decode_index,
    encode_index,
    frame_altered,
    pack_cut,
    read_frame_head,
    split_ids,
)
from weft.backup.key import Keys
from weft.backup.storage.contract import Storage, Stored, list_own
from weft.contracts.durable_file import make_private
from weft.objects.errors import BackupAltered, DriverFailed, Unavailable

T = TypeVar("T")
_CUT = 2  # in the column indexed

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pack (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, version TEXT NOT NULL, size INTEGER NOT NULL,
    indexed INTEGER NOT NULL, locked_until REAL NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS frame (
    number INTEGER PRIMARY KEY, pack INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL, ids BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS chunk (
    id BLOB NOT NULL, frame INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (id, frame)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS frame_pack ON frame (pack, start);
CREATE TABLE IF NOT EXISTS manifest (id TEXT PRIMARY KEY, sealed BLOB NOT NULL);
"""


class Spot(NamedTuple):
    """The place of one copy of a chunk."""

    pack: str
    version: str
    frame: PackFrame
    place: int  # in the frame


class Pack(NamedTuple):
    name: str
    version: str
    size: int
    locked_until: float


class Catalogue:
    """``refresh`` makes it what the repository has. Any thread may call; one file serves several processes."""

    def __init__(self, path: Path, storage: Storage, keys: Keys) -> None:
        self._storage, self._keys = storage, keys
        self.lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.db = _open(path)
        except sqlite3.DatabaseError as problem:
            if not is_damaged(problem):
                raise
            drop_catalogue(path.parent, path.stem)
            self.db = _open(path)
        path.chmod(0o600)

    def close(self) -> None:
        self.db.close()

    def refresh(self, active: set[str]) -> None:
        """Take in packs that are new, drop those that are gone, and note whose index is missing. What leases in ``active`` write
        and have not indexed yet is left alone. Of a pack that is damaged, as its index is, what lies before the damage is taken
        in: it is ``cut``."""
        packs = {found.key.removeprefix("packs/"): found for found in list_own(self._storage, "packs/")}
        indexed = {found.key.removeprefix("index/"): found for found in list_own(self._storage, "index/") if found.size}
        with self.lock:
            known = {name for (name,) in self.db.execute("SELECT name FROM pack")}
            had = {name for (name,) in self.db.execute("SELECT name FROM pack WHERE indexed = 1")}
            self.lost_indexes(name for name in (had & packs.keys()) - indexed.keys() if lease_of(name) not in active)
            if gone := known - packs.keys():
                self._drop(gone)
        for name in sorted((packs.keys() - known) | (packs.keys() & self.cut())):
            with contextlib.suppress(ObjectMissing):  # a clean-up has just deleted it
                if name in indexed:
                    self._take_in(packs[name], indexed[name])
                elif lease_of(name) not in active:
                    self._walk(packs[name])

    def add(
        self, name: str, version: str, size: int, frames: Iterable[PackFrame], indexed: int, until: float = 0
    ) -> None:
        """Add a pack's frames; ``indexed``: its index lies in the repository, whole. A pack that is known stays as it is, unless
        it was cut."""
        frames = list(frames)
        if indexed != _CUT:
            self._drop(self.cut() & {name})
        with self.lock, self.db:
            self.db.execute("BEGIN IMMEDIATE")
            if self.db.execute("SELECT 1 FROM pack WHERE name = ?", (name,)).fetchone():
                return
            pack = self.db.execute(
                "INSERT INTO pack (name, version, size, indexed, locked_until) VALUES (?, ?, ?, ?, ?)",
                (name, version, size, indexed, until),
            ).lastrowid
            for frame in frames:
                number = self.db.execute(
                    "INSERT INTO frame (pack, start, length, ids) VALUES (?, ?, ?, ?)",
                    (pack, frame.offset, frame.length, b"".join(frame.ids)),
                ).lastrowid
                self.db.executemany(
                    "INSERT OR IGNORE INTO chunk VALUES (?, ?, ?)",
                    [(id_, number, place) for place, id_ in enumerate(frame.ids)],
                )

    def find(self, ids: Sequence[bytes]) -> dict[bytes, list[Spot]]:
        """Every copy of each of the chunks that is known, those in newer packs first."""
        marks = ",".join("?" * len(ids))
        with self.lock:
            rows = self.db.execute(
                "SELECT chunk.id, pack.name, pack.version, frame.start, frame.length, frame.ids, chunk.place "  # noqa: S608
                "FROM chunk JOIN frame ON frame.number = chunk.frame JOIN pack ON pack.number = frame.pack "
                f"WHERE chunk.id IN ({marks}) ORDER BY pack.name DESC",
                list(ids),
            ).fetchall()
        found: dict[bytes, list[Spot]] = {}
        frames: dict[tuple[str, int], PackFrame] = {}
        for id_, name, version, start, length, named, place in rows:
            frame = frames.get((name, start))
            if frame is None:
                frame = frames[name, start] = PackFrame(start, length, split_ids(named))
            found.setdefault(id_, []).append(Spot(name, version, frame, place))
        return found

    def packs(self) -> list[Pack]:
        with self.lock:
            return [Pack(*row) for row in self.db.execute("SELECT name, version, size, locked_until FROM pack")]

    def cut(self) -> set[str]:
        """Packs of which only the beginning is known: neither they nor their indexes are whole."""
        with self.lock:
            return {name for (name,) in self.db.execute("SELECT name FROM pack WHERE indexed = ?", (_CUT,))}

    def unindexed(self) -> set[str]:
        """Packs whose index in the repository is missing or damaged."""
        with self.lock:
            return {name for (name,) in self.db.execute("SELECT name FROM pack WHERE NOT indexed")}

    def indexed(self, pack: str) -> None:
        """Note that the repository has the pack's index now."""
        with self.lock, self.db:
            self.db.execute("UPDATE pack SET indexed = 1 WHERE name = ?", (pack,))

    def lost_indexes(self, packs: Iterable[str]) -> None:
        """Note that the repository's indexes of these packs are missing or damaged."""
        rows = [(pack,) for pack in packs]
        if not rows:
            return
        with self.lock, self.db:
            self.db.executemany("UPDATE pack SET indexed = 0 WHERE name = ? AND indexed = 1", rows)

    def frames(self, pack: str) -> list[PackFrame]:
        with self.lock:
            rows = self.db.execute(
                "SELECT start, length, ids FROM frame WHERE pack = (SELECT number FROM pack WHERE name = ?) ORDER BY start",
                (pack,),
            ).fetchall()
        return [PackFrame(start, length, split_ids(ids)) for start, length, ids in rows]

    def locked(self, pack: str, until: float) -> None:
        """Note that the place said ``pack`` is locked until then."""
        with self.lock, self.db:
            self.db.execute("UPDATE pack SET locked_until = ? WHERE name = ?", (until, pack))

    def forget(self, pack: str) -> None:
        with self.lock:
            self._drop({pack})

    def manifest(self, backup: str) -> bytes | None:
        with self.lock:
            row = self.db.execute("SELECT sealed FROM manifest WHERE id = ?", (backup,)).fetchone()
        return row[0] if row else None

    def manifests(self) -> list[tuple[str, bytes]]:
        """All that this node has read or written, also of backups that were deleted since."""
        with self.lock:
            return self.db.execute("SELECT id, sealed FROM manifest").fetchall()

    def keep_manifest(self, backup: str, sealed: bytes) -> None:
        with self.lock, self.db:
            self.db.execute("INSERT OR REPLACE INTO manifest VALUES (?, ?)", (backup, sealed))

    def _take_in(self, pack: Stored, index: Stored) -> None:
        name = pack.key.removeprefix("packs/")
        try:
            version, size, frames = decode_index(self._keys, name, self._storage.get(index.key, version=index.version))
            self.add(name, version or pack.version, size, frames, indexed=True)
        except DriverFailed:  # the pack says itself what it holds
            self._walk(pack)

    def _walk(self, pack: Stored) -> None:
        frames, whole = list[PackFrame](), True
        try:
            frames.extend(walk_pack(self._storage, pack))  # keeps those before the damage
        except BackupAltered:
            whole = False
        self.add(pack.key.removeprefix("packs/"), pack.version, pack.size, frames, 0 if whole else _CUT)

    def _drop(self, names: set[str]) -> None:
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            for name in names:
                for number, ids in self.db.execute(
                    "SELECT number, ids FROM frame WHERE pack = (SELECT number FROM pack WHERE name = ?)", (name,)
                ).fetchall():
                    self.db.executemany(
                        "DELETE FROM chunk WHERE id = ? AND frame = ?", [(id_, number) for id_ in split_ids(ids)]
                    )
                    self.db.execute("DELETE FROM frame WHERE number = ?", (number,))
                self.db.execute("DELETE FROM pack WHERE name = ?", (name,))


def is_damaged(problem: sqlite3.Error) -> bool:
    """Whether a catalogue has to be made again, as after a power cut."""
    return _code_of(problem) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def drop_catalogue(cache: Path, repository: str) -> None:
    for end in ("", "-wal", "-shm"):
        (cache / f"{repository}.db{end}").unlink(missing_ok=True)


def with_catalogue(cache: Path, work: Callable[[Callable[[str], None]], T]) -> T:
    """Return what ``work`` gives; it may be begun again, once: where its catalogue is damaged. It calls its argument with the id of
    the repository. Raises Unavailable, and what ``work`` raises."""
    opened: list[str] = []
    try:
        try:
            return work(opened.append)
        except sqlite3.DatabaseError as problem:
            if not is_damaged(problem) or not opened:
                raise
            drop_catalogue(cache, opened[0])
            return work(opened.append)
    except sqlite3.Error as problem:
        raise explain_catalogue(problem, cache) from problem


def explain_catalogue(problem: sqlite3.Error, cache: Path) -> Unavailable:
    if _code_of(problem) == sqlite3.SQLITE_FULL:
        what = f"{cache} of this node has no space for the catalogue of the backup repository: {problem}"
        return Unavailable(what, reason="spoolFull", hint="free space there")
    return Unavailable(
        f"the catalogue of the backup repository in {cache} of this node can't be used: {problem}",
        hint="try again: a damaged one is made again; if this comes back, check the disk there",
    )


def _code_of(problem: sqlite3.Error) -> int:
    return getattr(problem, "sqlite_errorcode", 0) & 0xFF  # above are details


def lease_of(pack: str) -> str:
    """The lease that wrote a pack: GENERATION-LEASE-NUMBER."""
    return pack.split("-")[1] if pack.count("-") == 2 else ""


def walk_pack(storage: Storage, pack: Stored) -> Iterator[PackFrame]:
    """A pack's frames by their heads alone. Raises BackupAltered where no frame begins: what comes behind it is lost."""
    at = PACK_START
    if pack.size < at:
        raise pack_cut(pack.key.removeprefix("packs/"))
    name = pack.key.removeprefix("packs/")
    while at < pack.size:
        frame = read_frame_head(storage.get(pack.key, at, FRAME_HEAD_LIMIT, pack.version), at)
        if frame is None or at + frame.length > pack.size:
            raise frame_altered(name, PackFrame(at, 0, ()))
        yield frame
        at += frame.length


def _open(path: Path) -> sqlite3.Connection:
    make_private(path)
    db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")  # after a power cut it may be damaged, and is made again
        db.executescript(_SCHEMA)
        db.execute("SELECT count(*) FROM pack").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def refuse_if_cut(catalogue: Catalogue) -> None:
    """Raises BackupAltered if there are packs of which it isn't known what they hold, so that nothing may be deleted."""
    for name in sorted(catalogue.cut()):
        raise pack_cut(name)


def mend_indexes(catalogue: Catalogue, storage: Storage, keys: Keys, among: Callable[[str], bool]) -> None:
    """Write the indexes that are missing or damaged of packs that are whole. Raises Unavailable, Forbidden."""
    packs = {pack.name: pack for pack in catalogue.packs()}
    for name in sorted(filter(among, catalogue.unindexed())):
        pack = packs[name]
        storage.put(f"index/{name}", encode_index(keys, name, pack.version, pack.size, catalogue.frames(name)))
        catalogue.indexed(name)
