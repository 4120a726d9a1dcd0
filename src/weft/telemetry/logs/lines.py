"""The form in which people and programs get lines: JSON, one object a line."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from weft.telemetry.logs.query import StoredLine

_encoder = msgspec.json.Encoder()


class PrintedLine(msgspec.Struct, frozen=True):
    """``time``: RFC 3339, UTC, with microseconds, so that the order of the texts is that of the times; ``source``: KIND/NAME."""

    time: str
    source: str
    message: str


def encode_lines(lines: Iterable[StoredLine], source: str) -> bytes:
    """``PrintedLine`` of each."""
    return b"".join(_encoder.encode(show_line(line, source)) + b"\n" for line in lines)


def show_line(line: StoredLine, source: str) -> PrintedLine:
    return PrintedLine(format_time(line.at), source, line.text.decode("utf-8", "backslashreplace"))


def format_time(at: int) -> str:
    """2026-11-21T03:50:00.123456Z, of unix microseconds."""
    return datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
