"""Backup of an event file, row by row, and its restore into a file that may have events already.

The gateway may have the file open and write: all rows are of one instant. A restore loses nothing in the file and makes nothing
older: what the file has of an event, or of a schedule's last run, counts."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from weft.gateway.function_events.file import open_file
from weft.gateway.function_events.queue import COLUMNS, INSERT, Event, read_event
from weft.objects.errors import InvalidInput, Unavailable

_LATER = (
    "INSERT INTO fired VALUES (?, ?, ?) ON CONFLICT (function, entry) DO UPDATE SET last = max(last, excluded.last)"
)


class FiredAt(msgspec.Struct, frozen=True, tag="fired"):
    """When the schedule ``entry`` of a function (uid) was last fired."""

    function: str
    entry: str
    last: float


class Waits(msgspec.Struct, frozen=True, tag="event"):
    event: Event


_DECODER: msgspec.json.Decoder[Waits | FiredAt] = msgspec.json.Decoder(Waits | FiredAt)


def encode_event(event: Event) -> bytes:
    """Write an event as a row."""
    return msgspec.json.encode(Waits(event))


def read_rows(path: Path, without: Collection[str] = ()) -> Iterator[bytes]:
    """Read each row as JSON, and the copies of other gateways' events, except those of gateways in ``without``; nothing if the
    file doesn't exist. Raises Unavailable if it can't be read."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None)) as db:
            db.execute("BEGIN")
            for function, entry, last in db.execute("SELECT function, entry, last FROM fired"):
                yield msgspec.json.encode(FiredAt(function, entry, last))
            for row in db.execute(f"SELECT {COLUMNS} FROM event ORDER BY seq"):  # noqa: S608 (COLUMNS are ours)
                yield encode_event(read_event(row))
            if db.execute(
                "SELECT 1 FROM sqlite_master WHERE name = 'copy'"
            ).fetchone():  # else it is one of an earlier weft
                for owner, event in db.execute("SELECT owner, event FROM copy"):
                    if owner not in without:
                        yield encode_event(msgspec.msgpack.decode(event, type=Event))
    except sqlite3.Error as problem:
        raise Unavailable(
            f"{path} can't be read: {problem}", hint="remove the file from the folder: its events are lost"
        ) from problem


def put_rows(path: Path, rows: Iterable[bytes]) -> int:
    """Write ``rows``, all or none, durably; how many events are new. Raises InvalidInput for an invalid row, Unavailable if the
    file can't be written."""
    try:
        with closing(open_file(path)) as db:
            before = db.total_changes
            db.execute("BEGIN IMMEDIATE")
            fired = 0
            for row in rows:
                match _read(row):
                    case Waits(event=event):
                        db.execute(INSERT, msgspec.structs.astuple(event))
                    case FiredAt(function=function, entry=entry, last=last):
                        db.execute(_LATER, (function, entry, last))
                        fired += 1
            db.execute("COMMIT")
            return db.total_changes - before - fired
    except sqlite3.Error as problem:
        raise Unavailable(
            f"{path} can't be written: {problem}", hint="check whether the file is damaged or the disk is full"
        ) from problem


def _read(row: bytes) -> Waits | FiredAt:
    try:
        return _DECODER.decode(row)
    except msgspec.MsgspecError as problem:
        raise InvalidInput(f"an event in the backup can't be read: {problem}") from None
