"""Drop the mark of 0 that CRIU would set on a saved socket, and may not where the network isn't its users': each socket has it
anyway. Takes it out of CRIU's list of open files.

Source: CRIU 3.17's images (magic words, then entries of a length and a protocol buffer) and its fdinfo, sk-inet, sk-unix,
packet-sock, sk-netlink and sk-opts definitions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = "files.img"
_HEAD_BYTES = 8
_LENGTH = struct.Struct("<I")
_VARINT, _SIZED = 0, 2
_FIXED = {1: 8, 5: 4}
# Of an open file that is a socket, by its family: the socket, its options, their mark.
_MARKS: dict[int, dict[int, dict[int, Any]]] = {
    4: {14: {10: {}}},
    6: {7: {10: {}}},
    7: {12: {10: {}}},
    16: {10: {10: {}}},
}


def forget_marks(folder: Path) -> None:
    """Raises OSError; ValueError for what is no such list."""
    path = folder / FILES
    path.write_bytes(drop_marks(path.read_bytes()))


def drop_marks(image: bytes) -> bytes:
    """Pure. Raises ValueError."""
    kept, at = [image[:_HEAD_BYTES]], _HEAD_BYTES
    while at < len(image):
        (length,) = _LENGTH.unpack_from(image, at)
        at += _LENGTH.size
        entry = _drop(image[at : at + length], _MARKS)
        kept += [_LENGTH.pack(len(entry)), entry]
        at += length
    return b"".join(kept)


def _drop(message: bytes, ways: dict[int, Any]) -> bytes:
    """``message`` without the fields at the ends of ``ways`` that are 0."""
    kept = []
    for number, kind, whole, content in _read_fields(message):
        further = ways.get(number)
        if further and kind == _SIZED:
            inner = _drop(content, further)
            kept.append(_write_varint(number << 3 | kind) + _write_varint(len(inner)) + inner)
        elif further is None or kind != _VARINT or content != b"\0":
            kept.append(whole)
    return b"".join(kept)


def _read_fields(message: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Number, kind, all of it, and what is in it, of each field."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        number, kind = key >> 3, key & 7
        begin = at
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind == _SIZED:
            length, begin = _read_varint(message, at)
            at = begin + length
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise ValueError(f"a field of kind {kind} in a list of open files")
        yield number, kind, message[start:at], message[begin:at]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("a list of open files ends within a number")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _write_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
