"""One sample of a metric, and how a batch of them is sent: Prometheus' remote write 1.0. Pure.

Source: https://prometheus.io/docs/specs/prw/remote_write_spec/ (a protobuf message in snappy's block format), and
https://github.com/google/snappy/blob/main/format_description.txt. What is sent here is never compressed: snappy's format may hold
what it holds as it is, and every reader of snappy reads that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
_LITERAL_BYTES = 65_536  # of one piece in snappy's format


class Sample(NamedTuple):
    """``labels`` are pairs of a name and a value, without the metric's name."""

    name: str
    labels: tuple[tuple[str, str], ...]
    at: int  # unix milliseconds
    value: float


def encode_samples(samples: Iterable[Sample]) -> bytes:
    """The body of one request of remote write. A sample is a series of its own: that's what one moment of many series is."""
    return _wrap(b"".join(_field(1, _encode_series(sample)) for sample in samples))


def _encode_series(sample: Sample) -> bytes:
    labels = sorted((("__name__", sample.name), *sample.labels))  # readers want them sorted
    pairs = b"".join(_field(1, _field(1, name.encode()) + _field(2, value.encode())) for name, value in labels)
    return pairs + _field(2, b"\x09" + struct.pack("<d", sample.value) + b"\x10" + _varint(sample.at))


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field with bytes in it."""
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _wrap(content: bytes) -> bytes:
    """``content`` in snappy's block format, as literals."""
    pieces: Sequence[bytes] = [
        content[start : start + _LITERAL_BYTES] for start in range(0, len(content), _LITERAL_BYTES)
    ]
    # Tag 61 << 2: the literal's length, less one, follows in two bytes.
    return _varint(len(content)) + b"".join(b"\xf4" + struct.pack("<H", len(piece) - 1) + piece for piece in pieces)
