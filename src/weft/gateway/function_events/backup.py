"""What an event file holds, row by row, for a server's backup; and back into a file, whatever that holds already.

Read while the gateway has the file open and writes on: all rows are of one instant. Put back, nothing that the file has is lost or
made older: what it knows of an event, or of when a schedule was last fired, counts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from weft.gateway.function_events.file import open_file
from weft.gateway.function_events.queue import COLUMNS, INSERT, Event
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


def read_rows(path: Path) -> Iterator[bytes]:
    """Each row as JSON; none if there is no such file. Raises Unavailable if it can't be read."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None)) as db:
            db.execute("BEGIN")
            for function, entry, last in db.execute("SELECT function, entry, last FROM fired"):
                yield msgspec.json.encode(FiredAt(function, entry, last))
            names = Event.__struct_fields__
            for row in db.execute(f"SELECT {COLUMNS} FROM event ORDER BY seq"):  # noqa: S608 (COLUMNS are ours)
                yield msgspec.json.encode(Waits(Event(**dict(zip(names, row, strict=True)))))
    except sqlite3.Error as problem:
        raise Unavailable(
            f"{path} can't be read: {problem}", hint="move the file away: its events are lost"
        ) from problem


def put_rows(path: Path, rows: Iterable[bytes]) -> int:
    """Put ``rows`` in, all or none, durably; how many events weren't there. Raises InvalidInput for what is no row, Unavailable if
    the file can't be written."""
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
        raise InvalidInput(f"the backup holds an event that isn't understood: {problem}") from None
