"""The form of a file of samples: how long it keeps them at which step, where a record lies, and its header. Pure.

A file is a header and one ring of records for each level. A record belongs to one slot, the whole number of its level's steps
since 1970, and lies at that number modulo the ring's size. It carries the number, so that what was not measured, or is left from
a former round, is told from what was; and a checksum, so that what was damaged is too.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import msgspec

MAGIC, VERSION = b"weftsmpl", 1
HEADER_BYTES = 8192
NAN = float("nan")
MOST_SERIES = 160  # as many as a VM with all the disks and NICs it may have; their names fit into the header
_PREAMBLE = struct.Struct("<8sHHII")  # magic, version, columns, length of the names, checksum of all that
HEAD = struct.Struct("<qII")  # of a record: slot, checksum, zero


class Level(msgspec.Struct, frozen=True):
    """Samples at one step. ``parts``: 1 if a record has one value of each series, 3 if it has the least, the mean, the greatest."""

    step_ms: int
    slots: int
    parts: int

    @property
    def span_seconds(self) -> float:
        return self.step_ms * self.slots / 1000


LEVELS = (
    Level(200, 5 * 300, 1),  # five minutes at 5 Hz
    Level(1_000, 3_600, 3),  # an hour
    Level(10_000, 8_640, 3),  # a day
    Level(300_000, 8_640, 3),  # 30 days
)


class Series(msgspec.Struct, frozen=True, array_like=True):
    """Name and unit of one column."""

    name: str
    unit: str


class Layout(msgspec.Struct, frozen=True):
    """Layout of a file with these series. Columns come in pairs, so that every record begins at a multiple of eight."""

    series: tuple[Series, ...]

    @property
    def columns(self) -> int:
        return len(self.series) + len(self.series) % 2

    def record_bytes(self, level: int) -> int:
        return HEAD.size + 4 * self.columns * LEVELS[level].parts

    def begin(self, level: int) -> int:
        """Offset of the ring of ``level``; of the level after the last, the file's end."""
        return HEADER_BYTES + sum(LEVELS[one].slots * self.record_bytes(one) for one in range(level))

    def offset(self, level: int, slot: int) -> int:
        """Offset of the record of ``slot``."""
        return self.begin(level) + slot % LEVELS[level].slots * self.record_bytes(level)

    @property
    def file_bytes(self) -> int:
        """The size of the whole file; the disk has only those of its blocks that were written."""
        return self.begin(len(LEVELS))


def encode_header(layout: Layout) -> bytes:
    """Raises ValueError where the names don't fit."""
    names = msgspec.json.encode(layout.series)
    if _PREAMBLE.size + len(names) > HEADER_BYTES or len(layout.series) > MOST_SERIES:
        raise ValueError(f"{len(layout.series)} series are too many for one file")
    plain = _PREAMBLE.pack(MAGIC, VERSION, layout.columns, len(names), 0)
    return (_PREAMBLE.pack(MAGIC, VERSION, layout.columns, len(names), zlib.crc32(plain + names)) + names).ljust(
        HEADER_BYTES, b"\0"
    )


def decode_header(header: bytes) -> Layout | None:
    """None for what is no header, is damaged, or is of another version."""
    if len(header) < HEADER_BYTES:
        return None
    magic, version, columns, length, checksum = _PREAMBLE.unpack_from(header)
    names = header[_PREAMBLE.size : _PREAMBLE.size + length]
    if (magic, version) != (MAGIC, VERSION) or len(names) != length:
        return None
    if zlib.crc32(_PREAMBLE.pack(magic, version, columns, length, 0) + names) != checksum:
        return None
    try:
        layout = Layout(msgspec.json.decode(names, type=tuple[Series, ...]))
    except msgspec.MsgspecError:
        return None
    return layout if layout.columns == columns and len(layout.series) <= MOST_SERIES else None


def encode_record(slot: int, values: bytes) -> bytes:
    return HEAD.pack(slot, zlib.crc32(values, slot & 0xFFFFFFFF), 0) + values


def holds(record: bytes | memoryview, slot: int) -> bool:
    """Whether it is the whole record of ``slot``."""
    found, checksum, _ = HEAD.unpack_from(record)
    return bool(found == slot and zlib.crc32(record[HEAD.size :], slot & 0xFFFFFFFF) == checksum)


def fold(rows: Sequence[Sequence[float]], columns: int) -> list[float]:
    """Least, mean and greatest of each column, one after the other; ``rows`` have them likewise, or only values. A
    column without a number stays without one."""
    across = list(zip(*rows, strict=True))
    if len(across) == columns:
        return _fold_values(across)
    low, mid, high = (across[part * columns :][:columns] for part in range(3))
    least, mean, greatest = [], [], []
    for lows, mids, highs in zip(low, mid, high, strict=True):
        total = sum(mids)
        if total == total:  # no NaN
            least.append(min(lows))
            mean.append(total / len(mids))
            greatest.append(max(highs))
        else:
            numbers = _numbers(mids)
            least.append(min(_numbers(lows), default=NAN))
            mean.append(sum(numbers) / len(numbers) if numbers else NAN)
            greatest.append(max(_numbers(highs), default=NAN))
    return [*least, *mean, *greatest]


def _fold_values(across: Sequence[Sequence[float]]) -> list[float]:
    """The same, of values alone: every second of every guest."""
    least, mean, greatest = [], [], []
    for values in across:
        total, numbers = sum(values), values
        if total != total:
            numbers = [value for value in values if value == value]
            if not numbers:
                least.append(NAN)
                mean.append(NAN)
                greatest.append(NAN)
                continue
            total = sum(numbers)
        least.append(min(numbers))
        mean.append(total / len(numbers))
        greatest.append(max(numbers))
    return [*least, *mean, *greatest]


def _numbers(column: Sequence[float]) -> list[float]:
    return [value for value in column if value == value]
