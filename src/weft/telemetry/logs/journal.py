"""The newest lines of a node, not yet in a segment: a file to which records are appended, each with lines of one source and how far
that source was read. A record is whole or isn't there, so a source is read on exactly from where its last whole record ends."""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from pathlib import Path

import msgspec

from weft.telemetry.logs.segment import Lines, open_private, sync_folder

_PREFIX = struct.Struct("<II")  # length and crc32 of what follows
MOST_RECORD_BYTES = 64 << 20


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """How far a source was read. ``position``: in the form of what it is read from; ``rests``: by stream, the beginning of a line
    that hasn't ended; ``cut``: streams whose line is in the store already, cut, and which are left out until it ends."""

    position: str = ""
    rests: dict[str, bytes] = {}
    cut: list[str] = []


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Record of a source's lines. Without lines, ``first`` is the number of the source's next one. ``what``: what the source is
    called; "": as before."""

    uid: str
    first: int
    times: bytes
    text: bytes
    cursor: Cursor | None
    what: str = ""

    @property
    def next(self) -> int:
        return self.first + len(self.times) // 8

    def lines(self) -> Lines:
        times = array("q")
        times.frombytes(self.times)
        return Lines(self.uid, self.first, times, self.text)


class Journal:
    """Open for appending; ``close`` it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._file).st_size
        self._dirty = False

    def append(self, record: Record) -> None:
        """The whole record, or raises OSError and nothing is appended."""
        data = _encode(record)
        try:
            written = os.write(self._file, data)
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(data)
        self._dirty = True

    def sync(self) -> None:
        """Power may fail now. Raises OSError."""
        if self._dirty:
            self._dirty = False
            os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


def begin_journal(path: Path, records: list[Record]) -> None:
    """A new one that begins with ``records``: all of it or nothing. Raises OSError."""
    fresh = path.with_suffix(".new")
    with open(fresh, "wb", opener=open_private) as file:
        file.write(b"".join(map(_encode, records)))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def read_journal(path: Path) -> list[Record]:
    """All whole records; what was torn when the agent or the machine died is cut off. Raises OSError."""
    data = path.read_bytes()
    records, at = [], 0
    while at + _PREFIX.size <= len(data):
        length, crc = _PREFIX.unpack_from(data, at)
        payload = data[at + _PREFIX.size : at + _PREFIX.size + length]
        if length > MOST_RECORD_BYTES or len(payload) < length or zlib.crc32(payload) != crc:
            break
        try:
            records.append(msgspec.msgpack.decode(payload, type=Record))
        except msgspec.MsgspecError:
            break
        at += _PREFIX.size + length
    if at < len(data):
        os.truncate(path, at)
    return records


def _encode(record: Record) -> bytes:
    payload = msgspec.msgpack.encode(record)
    return _PREFIX.pack(len(payload), zlib.crc32(payload)) + payload
