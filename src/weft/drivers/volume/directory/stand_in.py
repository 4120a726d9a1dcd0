"""A file in the place of a layer whose disk is served elsewhere. It is no image, so a program that would read it fails."""

from __future__ import annotations

from pathlib import Path

_MAGIC = b"weft: served by "
_MOST_BYTES = 512


def write_stand_in(path: Path, server: str) -> None:
    path.write_bytes(_MAGIC + server.encode())


def read_stand_in(path: Path) -> str:
    """The server; "" for any other file."""
    with path.open("rb") as file:
        head = file.read(_MOST_BYTES)
    return head.removeprefix(_MAGIC).decode() if head.startswith(_MAGIC) else ""
