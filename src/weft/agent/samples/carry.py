"""The samples of a workload that migrates: pieces of its file, which the other node puts into its own.

The other node may be hostile: what it sends is bounded, and has the form of samples or is refused."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence

import msgspec

from weft.objects.errors import InvalidInput
from weft.telemetry.samples.file import SampleFile
from weft.telemetry.samples.layout import LEVELS, MOST_SERIES, NAN, Series

PIECE_BYTES = 400_000  # of values; as JSON it is half as much again, and one message may have a megabyte
MOST_PIECES = 200  # of one workload: a full file of as many series as there may be has less
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_UNIT = re.compile(r"[a-z/]{1,16}")


class Piece(msgspec.Struct, frozen=True):
    """Slots of one level; ``values`` are float32, slot by slot, each with all ``series``, once for each of the level's parts."""

    series: tuple[Series, ...]
    level: int
    slots: list[int]
    values: bytes


def pack_file(file: SampleFile) -> Iterator[bytes]:
    """All that the file holds. Raises OSError."""
    series, columns = file.layout.series, file.layout.columns
    for level, facts in enumerate(LEVELS):
        count = len(series) * facts.parts
        pack = struct.Struct(f"<{count}f").pack
        most = max(1, PIECE_BYTES // (4 * count))
        slots: list[int] = []
        values = bytearray()
        for slot, row in file.list_all(level):
            slots.append(slot)
            values += pack(*(value for part in range(facts.parts) for value in row[part * columns :][: len(series)]))
            if len(slots) == most:
                yield msgspec.msgpack.encode(Piece(series, level, slots, bytes(values)))
                slots, values = [], bytearray()
        if slots:
            yield msgspec.msgpack.encode(Piece(series, level, slots, bytes(values)))


def read_piece(data: bytes) -> Piece:
    """Raises InvalidInput for what is none."""
    try:
        piece = msgspec.msgpack.decode(data, type=Piece)
    except msgspec.MsgspecError as problem:
        raise InvalidInput(f"these are not samples: {problem}") from None
    sized = 0 <= piece.level < len(LEVELS) and 0 < len(piece.series) <= MOST_SERIES
    named = all(_NAME.fullmatch(one.name) and _UNIT.fullmatch(one.unit) for one in piece.series)
    if not (sized and named and len(set(piece.series)) == len(piece.series)):
        raise InvalidInput("these are not samples: they have series that no workload has")
    if len(piece.values) != 4 * len(piece.slots) * len(piece.series) * LEVELS[piece.level].parts:
        raise InvalidInput("these are not samples: their number is not that of their slots")
    return piece


def put_piece(file: SampleFile, piece: Piece, now: float) -> None:
    """Add what the file lacks; what was measured here counts, and nothing is of later than ``now`` (unix seconds). Raises
    OSError."""
    parts, count = LEVELS[piece.level].parts, len(piece.series)
    places = {one: at for at, one in enumerate(piece.series)}
    order: Sequence[int | None] = [places.get(one) for one in file.layout.series]
    order = [*order, *[None] * (file.layout.columns - len(order))]
    last = int(now * 1000) // LEVELS[piece.level].step_ms
    rows = struct.iter_unpack(f"<{count * parts}f", piece.values)
    for slot, row in zip(piece.slots, rows, strict=True):
        if 0 < slot <= last and file.lacks(piece.level, slot):
            at = [part * count for part in range(parts)]
            file.put(piece.level, slot, [NAN if one is None else row[start + one] for start in at for one in order])
