"""The file with the samples of one workload, or of the node: of the last 30 days, ever coarser.

It is written with ``pwrite``, a record at a time: what was written outlives a killed agent, a full disk is an error of one
record and not a signal that ends the process, and nothing of the file counts as the agent's memory ([0150]). Coarse records are
made from the finer ones in the file, so nothing waits in memory to be written. One writer; readers may be other threads.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from weft.telemetry.samples.layout import (
    HEAD,
    HEADER_BYTES,
    LEVELS,
    NAN,
    Layout,
    Series,
    decode_header,
    encode_header,
    encode_record,
    fold,
    holds,
)

_AT_ONCE = 512  # records
_PARTS = ("min", "mean", "max")


class Block(msgspec.Struct, frozen=True):
    """Consecutive slots of one level as they lie in a file; ``valid`` says which were measured."""

    level: int
    first: int
    valid: list[bool]
    columns: int
    data: memoryview[float]  # float32, with each record's head

    def column(self, index: int, part: str = "mean") -> list[float]:
        """The values of one series, NaN where there is none."""
        parts = LEVELS[self.level].parts
        stride = HEAD.size // 4 + self.columns * parts
        at = HEAD.size // 4 + index + (0 if parts == 1 else _PARTS.index(part) * self.columns)
        values: Sequence[float] = self.data[at::stride].tolist()
        if not all(self.valid):
            return [value if there else NAN for value, there in zip(values, self.valid, strict=True)]
        return list(values)

    def rows(self) -> Iterator[tuple[int, Sequence[float]]]:
        """The slots that were measured, each with all its values."""
        stride = HEAD.size // 4 + self.columns * LEVELS[self.level].parts
        for index, there in enumerate(self.valid):
            if there:
                yield self.first + index, self.data[index * stride + HEAD.size // 4 : (index + 1) * stride].tolist()


class SampleFile:
    """An open file. Close it."""

    def __init__(self, path: Path, layout: Layout, descriptor: int) -> None:
        self.path, self.layout = path, layout
        self._file = descriptor
        self._pack = {parts: struct.Struct(f"<{layout.columns * parts}f") for parts in (1, 3)}
        self._begins = [layout.begin(level) for level in range(len(LEVELS))]
        self._records = [layout.record_bytes(level) for level in range(len(LEVELS))]
        self._spare = [0.0] * (layout.columns - len(layout.series))
        self._last: int | None = None  # the step that was written last

    def append(self, at: float, values: Sequence[float]) -> None:
        """Record ``values``, one of each series (NaN: not measured), as those of the step in which ``at`` (unix seconds) lies.
        Raises OSError; then that step stays a gap."""
        tick = int(at * 1000) // LEVELS[0].step_ms
        last = self._last if self._last is not None else self._find_last(tick - 1)
        self._last = tick
        if last is not None and last != tick:
            self._fold(last, tick)
        self._write(0, tick, [*values, *self._spare])

    def read(self, level: int, first: int, last: int) -> Block:
        """The slots from ``first`` to ``last``, both included; the newest is made from what there is of it so far. Raises
        OSError."""
        size = LEVELS[level].slots
        first = max(first, last - size + 1)
        count = last - first + 1
        record = self._records[level]
        until_end = min(count, size - first % size)
        data = self._read_at(self._offset(level, first), until_end * record)
        if until_end < count:
            data += self._read_at(self._begins[level], (count - until_end) * record)
        view = memoryview(data)
        valid = [holds(view[at * record : (at + 1) * record], first + at) for at in range(count)]
        ratio = LEVELS[level].step_ms // LEVELS[0].step_ms
        newest = self._find_last((last + 1) * ratio - 1) if level else None
        if newest is not None and newest // ratio >= first and (made := self._make(level, newest // ratio)) is not None:
            at = (newest // ratio - first) * record
            data[at : at + record] = encode_record(newest // ratio, made)
            valid[newest // ratio - first] = True
        return Block(level, first, valid, self.layout.columns, view.cast("f"))

    def all(self, level: int, after: int = -1) -> Iterator[tuple[int, Sequence[float]]]:
        """Every slot later than ``after`` that was measured, each with all its values, in no order. Raises OSError."""
        record, size = self._records[level], LEVELS[level].slots
        for at in range(0, size, _AT_ONCE):
            count = min(_AT_ONCE, size - at)
            data = memoryview(self._read_at(self._offset(level, at), count * record))
            slots: list[int] = data.cast("q")[:: record // 8].tolist()
            for index, slot in enumerate(slots):
                here = data[index * record : (index + 1) * record]
                if slot > after and slot % size == at + index and holds(here, slot):
                    yield slot, here[HEAD.size :].cast("f").tolist()

    def list_all(self, level: int) -> Iterator[tuple[int, Sequence[float]]]:
        """Yield like ``all``, with the newest coarse slot, made from what there is of it so far. Raises OSError."""
        ratio = LEVELS[level].step_ms // LEVELS[0].step_ms
        newest = self._find_last(1 << 62) if level else None
        yield from ((slot, row) for slot, row in self.all(level) if newest is None or slot != newest // ratio)
        if newest is not None and (made := self._make(level, newest // ratio)) is not None:
            yield newest // ratio, self._pack[3].unpack(made)

    def lacks(self, level: int, slot: int) -> bool:
        """Whether there is neither a record of this slot nor, in its place, one of a later slot. Raises OSError."""
        record = memoryview(self._read_at(self._offset(level, slot), self._records[level]))
        found = HEAD.unpack_from(record)[0]
        return found < slot or not holds(record, found)

    def put(self, level: int, slot: int, values: Sequence[float]) -> None:
        """Record a slot that was measured elsewhere. Raises OSError."""
        self._write(level, slot, values)

    def close(self) -> None:
        os.close(self._file)

    def _fold(self, last: int, tick: int) -> None:
        """Write the coarser slots that ``last`` was in and ``tick`` isn't."""
        for level in range(1, len(LEVELS)):
            ratio = LEVELS[level].step_ms // LEVELS[0].step_ms
            slot = last // ratio
            if slot == tick // ratio:
                return
            if (made := self._make(level, slot)) is not None:
                os.pwrite(self._file, encode_record(slot, made), self._offset(level, slot))

    def _make(self, level: int, slot: int) -> bytes | None:
        """A coarser slot's values, of the finer ones; None where there are none."""
        finer = LEVELS[level - 1]
        ratio = LEVELS[level].step_ms // finer.step_ms
        rows = [row for _, row in self.read(level - 1, slot * ratio, (slot + 1) * ratio - 1).rows()]
        if not rows:
            return None
        return self._pack[3].pack(*fold(rows, self.layout.columns))

    def _write(self, level: int, slot: int, values: Sequence[float]) -> None:
        record = encode_record(slot, self._pack[LEVELS[level].parts].pack(*values))
        if os.pwrite(self._file, record, self._offset(level, slot)) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _offset(self, level: int, slot: int) -> int:
        return self._begins[level] + slot % LEVELS[level].slots * self._records[level]

    def _read_at(self, offset: int, size: int) -> bytearray:
        """``size`` bytes; zeros, which are no record, for what the file lacks."""
        data = bytearray(size)
        os.preadv(self._file, [data], offset)
        return data

    def _find_last(self, until: int) -> int | None:
        """The newest step of the finest level, not later than ``until``: a clock that was ahead may have left later ones."""
        record = self._records[0]
        data = memoryview(self._read_at(self._begins[0], LEVELS[0].slots * record))
        slots: list[int] = data.cast("q")[:: record // 8].tolist()
        newest = max((slot for slot in slots if 0 < slot <= until), default=None)
        if newest is None:
            return None
        at = slots.index(newest) * record
        return newest if holds(data[at : at + record], newest) else None


def open_file(path: Path, series: Sequence[Series]) -> SampleFile:
    """The file at ``path``, with columns for at least ``series``, made or widened where it lacks them; one that can't be read is
    replaced by an empty one. What it has of other series stays as long as all of them fit into one file. Raises OSError."""
    before = find_file(path)
    if before is None:
        return _make_file(path, Layout(tuple(series)))
    lacking = [one for one in series if one not in before.layout.series]
    if not lacking:
        return before
    try:
        try:
            return _make_file(path, Layout((*before.layout.series, *lacking)), before)
        except ValueError:
            return _make_file(path, Layout(tuple(series)), before)
    finally:
        before.close()


def find_file(path: Path) -> SampleFile | None:
    """The file at ``path``; None where there is none, or none that can be read. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.ELOOP, errno.EISDIR):  # nothing of ours
            return None
        raise
    try:
        layout = decode_header(os.pread(descriptor, HEADER_BYTES, 0))
        if layout is not None:
            return SampleFile(path, layout, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _make_file(path: Path, layout: Layout, before: SampleFile | None = None) -> SampleFile:
    """A file with all that ``before`` holds of its series; it takes its name only when it is whole. Raises OSError, ValueError for
    more series than fit into a file."""
    header = encode_header(layout)
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, layout.file_bytes)
        if os.pwrite(descriptor, header, 0) < len(header):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if before is not None:
            _copy(before, SampleFile(path, layout, descriptor))
        os.rename(unfinished, path)
        return SampleFile(path, layout, descriptor)
    except BaseException:
        os.close(descriptor)
        unfinished.unlink(missing_ok=True)
        raise


def _copy(before: SampleFile, after: SampleFile) -> None:
    places = {one: at for at, one in enumerate(before.layout.series)}
    rearranged = [places.get(one) for one in after.layout.series]
    rearranged += [None] * (after.layout.columns - len(rearranged))
    for level, facts in enumerate(LEVELS):
        starts = [part * before.layout.columns for part in range(facts.parts)]
        for slot, row in before.all(level):
            after.put(level, slot, [NAN if at is None else row[start + at] for start in starts for at in rearranged])
