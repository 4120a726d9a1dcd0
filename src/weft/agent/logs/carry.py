"""The log of a workload that migrates: its newest lines as a segment, in pieces, and how far its console was read.

The other node may be hostile: what it sends is bounded, and has the form of a log or is refused."""

from __future__ import annotations

import importlib

import msgspec

from weft.objects.errors import InvalidInput
from weft.telemetry.logs.journal import Cursor
from weft.telemetry.logs.segment import check_segment, encode_segment, name_segment
from weft.telemetry.logs.store import LogStore

PIECE_BYTES = 400_000  # as JSON it is half as much again, and one message may have a megabyte
MOST_BYTES = 32 << 20  # of times and text; compressed, a fifth of it
MOST_PIECES = MOST_BYTES // PIECE_BYTES + 2
_MOST_NUMBER = 1 << 62


class Carried(msgspec.Struct, frozen=True):
    """A piece of the segment; the last one also has the number of the workload's next line, and how far it was read."""

    data: bytes
    last: bool = False
    next: int = 0
    cursor: Cursor | None = None


def pack_log(store: LogStore, uid: str, *, named: bool = True) -> list[bytes]:
    """Its lines are ``named`` by the uid, or by "" for a cluster where the workload has another one. Raises OSError."""
    number, cursor = store.standing(uid)
    if cursor is None and not number:
        return []
    late = importlib.import_module("weft.telemetry.logs.query")  # once a workload leaves
    lines = late.collect_newest(store, uid, MOST_BYTES)
    if not named:
        lines = [msgspec.structs.replace(one, uid="") for one in lines]
    data = encode_segment(lines)[1] if lines else b""
    pieces = [Carried(data[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES)]
    pieces.append(Carried(b"", True, number, cursor))
    return [msgspec.msgpack.encode(piece) for piece in pieces]


class Arriving:
    """The log of one workload as it comes from another node; ``named`` as in ``pack_log``."""

    def __init__(self, store: LogStore, uid: str, *, named: bool = True) -> None:
        self._store, self._uid, self._named = store, uid, named
        self._data = bytearray()

    def take(self, packed: bytes, *, late: bool = False) -> bool:
        """Whether it was the last piece: then all of it is in the store. ``late``: this node has gone on in its console, and keeps
        its place there. Raises InvalidInput, OSError."""
        try:
            piece = msgspec.msgpack.decode(packed, type=Carried)
        except msgspec.MsgspecError as problem:
            raise InvalidInput(f"this is not a piece of a log: {problem}") from None
        if len(self._data) + len(piece.data) > MOST_BYTES or not 0 <= piece.next < _MOST_NUMBER:
            raise InvalidInput("this is not a log that a workload may have: it is too long")
        self._data += piece.data
        if not piece.last:
            return False
        data = bytes(self._data)
        if data:
            check_segment(data, self._uid if self._named else "", MOST_BYTES)
            data = data if self._named else name_segment(data, self._uid)
            self._store.put_carried(self._uid, data)
        if not late:
            self._store.set_next(self._uid, piece.next, piece.cursor or Cursor())
        return True
