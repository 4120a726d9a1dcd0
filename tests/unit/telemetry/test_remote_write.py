"""What is sent as remote write is what its format says: read back by a decoder of the test's own."""

from __future__ import annotations

import struct

import pytest

from weft.telemetry.metrics.sample import Sample, encode_samples


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    shift = value = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def unwrap(data: bytes) -> bytes:
    """Snappy's block format, of which only literals with a length of two bytes may come."""
    size, at = read_varint(data, 0)
    out = b""
    while at < len(data):
        assert data[at] == 61 << 2
        length = struct.unpack_from("<H", data, at + 1)[0] + 1
        out += data[at + 3 : at + 3 + length]
        at += 3 + length
    assert len(out) == size
    return out


def fields(data: bytes) -> list[tuple[int, object]]:
    """A protobuf message's fields: bytes, numbers or doubles."""
    found: list[tuple[int, object]] = []
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag & 7 == 2:
            length, at = read_varint(data, at)
            found.append((tag >> 3, data[at : at + length]))
            at += length
        elif tag & 7 == 1:
            found.append((tag >> 3, struct.unpack_from("<d", data, at)[0]))
            at += 8
        else:
            value, at = read_varint(data, at)
            found.append((tag >> 3, value))
    return found


def read(body: bytes) -> list[Sample]:
    samples = []
    for _, series in fields(unwrap(body)):
        assert isinstance(series, bytes)
        parts = fields(series)
        pairs = [
            tuple(bytes(text).decode() for _, text in fields(bytes(part))) for number, part in parts if number == 1
        ]  # type: ignore[call-overload]
        assert pairs == sorted(pairs)
        value, at = (part for _, part in fields(bytes(parts[-1][1])))  # type: ignore[call-overload]
        labels = {str(name): str(text) for name, text in pairs}
        samples.append(Sample(labels.pop("__name__"), tuple(sorted(labels.items())), int(str(at)), float(str(value))))
    return samples


@pytest.mark.parametrize("count", [0, 1, 3, 5000])
def test_what_is_sent_can_be_read_back(count: int) -> None:
    samples = [
        Sample("weft_guest_cpu_cores", (("name", "ü" * (n % 300)), ("project", "a")), 1_795_471_245_123 + n, n / 7)
        for n in range(count)
    ]
    assert read(encode_samples(samples)) == samples
