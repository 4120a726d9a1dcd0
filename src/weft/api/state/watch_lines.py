"""The lines of a watch. A change is encoded once for all watches without a selector. Does no I/O."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.contracts.store import Batch, Change, epoch_of
from weft.objects.envelope import Envelope, decode_envelope

_MOST_LINES = 2000
_encoder = msgspec.json.Encoder()


class WatchLine(msgspec.Struct, omit_defaults=True):
    type: str
    object: Envelope | None = None
    cursor: str = ""
    error: dict[str, Any] | None = None
    report: bool = False  # to a node: its report is awaited, whose answer has orders for it


class WatchLines:
    """The newest encoded lines."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str, bool], bytes] = {}

    def encode(self, batch: Batch, change: Change, *, last: bool) -> bytes:
        """The line of ``change`` for a watch without selector, the ``last`` one of its batch or not."""
        key = (batch.cursor, change.key, last)
        line = self._lines.get(key)
        if line is None:
            type_, value = ("delete", change.previous) if change.value is None else ("put", change.value)
            line = encode_change(batch, type_, value, last=last)
            if len(self._lines) >= _MOST_LINES:
                del self._lines[next(iter(self._lines))]
            self._lines[key] = line
        return line


def encode_change(batch: Batch, type_: str, value: bytes | None, *, last: bool) -> bytes:
    """One object's event; its revision is the batch's. A watch that was cut off before the ``last`` one gets the batch again."""
    envelope = None if value is None else decode_envelope(value, batch.revision)
    cursor = batch.cursor if last else f"{epoch_of(batch.cursor)}:{batch.revision - 1}"
    return encode_line(WatchLine(type_, envelope, cursor))


def encode_line(line: WatchLine) -> bytes:
    return _encoder.encode(line) + b"\n"
