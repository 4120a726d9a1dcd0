"""A segment: some MiB of lines in one file, a compressed part for each source. Never changed once it is written.

``magic, length of the head, its crc32, head (msgpack), parts``. The head says of whom the lines are and from when, so that most
questions skip most segments, and read one part of the others. A part is a frame of zstd: the lines' times (microseconds, 8 bytes
each), then their text, each line with its newline.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from weft.objects.errors import InvalidInput

LEVEL = 3
MOST_HEAD_BYTES = 1 << 20
_MAGIC = b"WEFTLOG1"
_PREFIX = struct.Struct("<8sII")


class Lines(msgspec.Struct, frozen=True):
    """Lines of one source, which have the numbers from ``first``. ``times``: unix microseconds; ``text``: each with its newline."""

    uid: str
    first: int
    times: array[int]
    text: bytes


class LinesPart(msgspec.Struct, frozen=True, array_like=True):
    """``Lines`` as one of the frames after the head, which are in the order of the parts."""

    uid: str
    first: int
    count: int
    since: int
    until: int
    text_bytes: int
    frame_bytes: int


class Head(msgspec.Struct, frozen=True, array_like=True):
    parts: tuple[LinesPart, ...]

    @property
    def lines(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def until(self) -> int:
        return max((part.until for part in self.parts), default=0)


def join_lines(lines: Iterable[Lines]) -> list[Lines]:
    """Ordered by source; what follows on in a source, in one piece."""
    pieces: dict[str, list[list[Lines]]] = {}
    for one in lines:
        runs = pieces.setdefault(one.uid, [])
        if runs and runs[-1][-1].first + len(runs[-1][-1].times) == one.first:
            runs[-1].append(one)
        else:
            runs.append([one])
    joined = []
    for uid, runs in pieces.items():
        for run in runs:
            times = array("q")
            for one in run:
                times.extend(one.times)
            joined.append(Lines(uid, run[0].first, times, b"".join(one.text for one in run)))
    return joined


def encode_segment(lines: Iterable[Lines]) -> tuple[Head, bytes]:
    """The file of these lines, and its head."""
    parts, frames = [], []
    late = importlib.import_module("zstandard")  # an agent that keeps no lines never needs it
    compressor = late.ZstdCompressor(level=LEVEL, write_checksum=True)
    for one in join_lines(lines):
        frames.append(frame := compressor.compress(one.times.tobytes() + one.text))
        since, until = min(one.times), max(one.times)
        parts.append(LinesPart(one.uid, one.first, len(one.times), since, until, len(one.text), len(frame)))
    head = Head(tuple(parts))
    packed = msgspec.msgpack.encode(head)
    return head, b"".join((_PREFIX.pack(_MAGIC, len(packed), zlib.crc32(packed)), packed, *frames))


def write_file(path: Path, data: bytes) -> None:
    """All of it or nothing, whatever happens meanwhile. Raises OSError."""
    fresh = path.with_suffix(".new")
    try:
        with open(fresh, "wb", opener=open_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_segment(data: bytes, uid: str, most_bytes: int) -> None:
    """Check a stranger's segment: it is whole, only of this source, and has ``most_bytes`` of times and text at most. Raises
    InvalidInput."""
    file = io.BytesIO(data)
    parts = _read_head(file).parts
    size = sum(8 * part.count + part.text_bytes for part in parts if min(part.count, part.text_bytes, part.first) >= 0)
    if size > most_bytes or not all(part.uid == uid for part in parts):
        raise InvalidInput("this is not a segment of this workload's log")
    end = 0
    for part in parts:
        lines = _decode_part(part, file.read(max(0, part.frame_bytes)))
        if part.first < end or lines.text.count(b"\n") != part.count or not lines.text.endswith(b"\n"):
            raise InvalidInput("this is not a segment of a log: its lines are not those of its head")
        end = part.first + part.count


def name_segment(data: bytes, uid: str) -> bytes:
    """A segment that ``check_segment`` has passed, with all its lines as those of ``uid``."""
    file = io.BytesIO(data)
    lines = [_decode_part(part, file.read(part.frame_bytes)) for part in _read_head(file).parts]
    return encode_segment([msgspec.structs.replace(one, uid=uid) for one in lines])[1]


def read_head(path: Path) -> Head:
    """Raises InvalidInput for anything else, OSError."""
    with open(path, "rb") as file:
        return _read_head(file)


def read_segment(path: Path, uid: str = "") -> Iterator[Lines]:
    """The lines, or only those of one source. Raises InvalidInput for anything else, OSError."""
    with open(path, "rb") as file:
        for part in _read_head(file).parts:
            if uid and part.uid != uid:
                file.seek(part.frame_bytes, os.SEEK_CUR)
            else:
                yield _decode_part(part, file.read(part.frame_bytes))


def read_parts(path: Path, kept: Iterable[LinesPart]) -> list[Lines]:
    """The lines of these of its parts. Raises InvalidInput, OSError."""
    wanted = set(kept)
    with open(path, "rb") as file:
        found = []
        for part in _read_head(file).parts:
            if part in wanted:
                found.append(_decode_part(part, file.read(part.frame_bytes)))
            else:
                file.seek(part.frame_bytes, os.SEEK_CUR)
        return found


def _decode_part(part: LinesPart, frame: bytes) -> Lines:
    late = importlib.import_module("zstandard")  # as above
    size = 8 * part.count + part.text_bytes
    try:
        if part.count < 1 or part.text_bytes < part.count or late.frame_content_size(frame) != size:
            raise InvalidInput("this is not a segment of a log: a part of it has another size")
        body = late.ZstdDecompressor().decompress(frame, max_output_size=size)
    except late.ZstdError as problem:
        raise InvalidInput(f"this is not a segment of a log: {problem}") from None
    times = array("q")
    times.frombytes(body[: 8 * part.count])
    return Lines(part.uid, part.first, times, body[8 * part.count :])


def _read_head(file: BinaryIO) -> Head:
    """The file then stands at the first part."""
    try:
        magic, length, crc = _PREFIX.unpack(file.read(_PREFIX.size))
        packed = file.read(min(length, MOST_HEAD_BYTES))
        if magic != _MAGIC or zlib.crc32(packed) != crc:
            raise InvalidInput("this is not a segment of a log")
        return msgspec.msgpack.decode(packed, type=Head)
    except (struct.error, msgspec.MsgspecError):
        raise InvalidInput("this is not a segment of a log") from None


def open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
