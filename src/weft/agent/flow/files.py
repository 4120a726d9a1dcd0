"""Folded flows as files, one for each workload: intervals appended, each with its length before it, and condensed once an hour.

Killed at any line, a file has all intervals that were appended, and at most a torn end, which is cut off before the next. What
another node sends of a workload that migrates may be hostile: it is bounded, and has the form of intervals or is refused."""

from __future__ import annotations

import ipaddress
import re
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from weft.agent.flow.folded import HOUR, MINUTE, MOST_OF_HOUR, OTHERS, FlowEntry, Interval, condense
from weft.contracts.durable_file import write_durably
from weft.objects.errors import InvalidInput
from weft.objects.identity import short_id
from weft.protocol.traffic import OTHER_PROJECT

PIECE_BYTES = 400_000  # as JSON it is half as much again, and one message may have a megabyte
MOST_BYTES = 4 << 20  # of a file: a day of full intervals has less than half
MOST_PIECES = MOST_BYTES // PIECE_BYTES + 2
_HEAD = struct.Struct("<I")
_MOST_COUNT = 1 << 62
_WORD = re.compile(r"[a-z0-9._/-]{0,130}")
_decoder = msgspec.msgpack.Decoder(Interval)


class Carried(msgspec.Struct, frozen=True):
    data: bytes
    last: bool


class FlowFiles:
    """Used by several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._condensed: dict[str, int] = {}  # the hour when it was, by workload uid: in this process
        self._busy = threading.Lock()

    def append(self, uid: str, interval: Interval, now: float) -> None:
        """Raises OSError."""
        with self._busy:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            hour = int(now) // HOUR
            if self._condensed.get(uid) != hour:
                self._rewrite(uid, condense([*self._read(uid), interval], now))
                self._condensed[uid] = hour
            else:
                with open(self._path(uid), "ab") as file:
                    file.write(_encode(interval))

    def read(self, uid: str) -> list[Interval]:
        """Read the entry that counts of each interval. Raises OSError."""
        with self._busy:
            return list({one.which: one for one in self._read(uid)}.values())

    def pack(self, uid: str, newest: Interval | None, now: float) -> list[bytes]:
        """All of a workload, and the interval that hasn't ended, in pieces that another node can ``take``. Raises OSError."""
        with self._busy:
            kept = condense([*self._read(uid), *([newest] if newest is not None else ())], now)
        data = b"".join(map(_encode, kept))
        cut = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
        return [msgspec.msgpack.encode(Carried(piece, at == len(cut) - 1)) for at, piece in enumerate(cut)]

    def take(self, uid: str, intervals: Iterable[Interval], now: float) -> None:
        """Add another node's. Raises OSError."""
        with self._busy:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._rewrite(uid, condense([*intervals, *self._read(uid)], now))
            self._condensed[uid] = int(now) // HOUR

    def sweep(self, uids: Iterable[str]) -> None:
        """Remove the files of workloads that aren't here any more. Raises OSError."""
        here = set(uids)
        own = {self._path(uid) for uid in here}
        with self._busy:
            for path in self._folder.glob("*.flows"):
                if path not in own:
                    path.unlink(missing_ok=True)
            self._condensed = {uid: hour for uid, hour in self._condensed.items() if uid in here}

    def _read(self, uid: str) -> list[Interval]:
        try:
            with open(self._path(uid), "rb") as file:
                return decode(file.read(2 * MOST_BYTES))
        except FileNotFoundError:
            return []

    def _rewrite(self, uid: str, intervals: Iterable[Interval]) -> None:
        write_durably(self._path(uid), b"".join(map(_encode, intervals)))

    def _path(self, uid: str) -> Path:
        return self._folder / f"{short_id(uid)}.flows"


class ArrivingFlows:
    """The folded flows of one workload as they come from another node."""

    def __init__(self) -> None:
        self._data = bytearray()

    def take(self, packed: bytes, now: float) -> list[Interval] | None:
        """Take a piece; the last one returns all of it. Raises InvalidInput."""
        try:
            piece = msgspec.msgpack.decode(packed, type=Carried)
        except msgspec.MsgspecError as problem:
            raise InvalidInput(f"these are not flows: {problem}") from None
        if len(self._data) + len(piece.data) > MOST_BYTES:
            raise InvalidInput("these are not flows that a workload may have: they are too long")
        self._data += piece.data
        if not piece.last:
            return None
        return [_check(interval, now) for interval in decode(bytes(self._data))]


def decode(data: bytes) -> list[Interval]:
    """The intervals up to the first that isn't whole."""
    found, at = list[Interval](), 0
    while at + _HEAD.size <= len(data):
        (size,) = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if at + size > len(data):
            break
        try:
            found.append(_decoder.decode(memoryview(data)[at : at + size]))
        except msgspec.MsgspecError:
            break
        at += size
    return found


def _encode(interval: Interval) -> bytes:
    data = msgspec.msgpack.encode(interval)
    return _HEAD.pack(len(data)) + data


def _check(interval: Interval, now: float) -> Interval:
    if interval.start % interval.seconds or not 0 <= interval.start <= now + MINUTE or not _is_word(interval.node):
        raise InvalidInput("these are not flows: an interval has a time that can't be")
    if len(interval.entries) > MOST_OF_HOUR + 2 or not all(map(_is_possible, interval.entries)):
        raise InvalidInput("these are not flows: an entry has what no flow has")
    return interval


def _is_possible(entry: FlowEntry) -> bool:
    key = entry.key
    counts = (entry.sent_bytes, entry.received_bytes, entry.sent_packets, entry.received_packets)
    return (
        key.direction in ("in", "out")
        and key.verdict in ("allowed", "refused", "unanswered")
        and all(map(_is_word, (key.network, key.protocol)))
        and (key.name == OTHER_PROJECT or _is_word(key.name))
        and (key.address == OTHERS or _is_address(key.address))
        and 0 <= key.port <= 65535
        and all(0 <= count < _MOST_COUNT for count in counts)
        and 0 <= entry.first <= entry.last < 1e11
    )


def _is_word(text: str) -> bool:
    return _WORD.fullmatch(text) is not None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
