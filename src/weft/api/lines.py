"""The lines of a watch. What many watch without a selector is encoded once and given to all of them. Does no I/O."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.contracts.store import Batch, Change
from weft.objects.envelope import Envelope, decode_envelope

_MOST_LINES = 2000
_encoder = msgspec.json.Encoder()


class Line(msgspec.Struct, omit_defaults=True):
    type: str
    object: Envelope | None = None
    cursor: str = ""
    error: dict[str, Any] | None = None


class Lines:
    """The newest encoded lines."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], bytes] = {}

    def encode(self, batch: Batch, change: Change) -> bytes:
        """The line of ``change`` for a watch without selector."""
        key = (batch.cursor, change.key)
        line = self._lines.get(key)
        if line is None:
            line = encode_change(batch, "delete" if change.value is None else "put", change.value or change.previous)
            if len(self._lines) >= _MOST_LINES:
                del self._lines[next(iter(self._lines))]
            self._lines[key] = line
        return line


def encode_change(batch: Batch, type_: str, value: bytes | None) -> bytes:
    """One object's event; its revision is the batch's."""
    envelope = None if value is None else decode_envelope(value, batch.revision)
    return encode_line(Line(type_, envelope, batch.cursor))


def encode_line(line: Line) -> bytes:
    return _encoder.encode(line) + b"\n"
