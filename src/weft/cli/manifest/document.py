"""A piece of a file as plain data that still knows where each field stood. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from weft.objects.errors import InvalidInput

Path = tuple[str | int, ...]
Position = tuple[int, int]  # line and column, both from 1
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Document(msgspec.Struct, frozen=True):
    """``value`` is what was written in ``file``; ``places`` says where the keys and items in it stand."""

    value: Any
    file: str
    places: Mapping[Path, Position] = {}

    def below(self, *steps: str | int) -> Document:
        """The part at ``steps``, which must be there, as a document of its own."""
        value = self.value
        for step in steps:
            value = value[step]
        depth = len(steps)
        places = {path[depth:]: place for path, place in self.places.items() if path[:depth] == steps}
        return Document(value, self.file, places)

    def locate(self, path: Path = ()) -> str:
        """``file:line:column`` of ``path``, or of the nearest part around it that has a known place."""
        for length in range(len(path), -1, -1):
            place = self.places.get(path[:length])
            if place is not None:
                return f"{self.file}:{place[0]}:{place[1]}"
        return self.file


def split_path(text: str) -> Path:
    """``spec.publish[0]`` as ("spec", "publish", 0)."""
    return tuple(match[1] if match[1] is not None else int(match[2]) for match in _STEP.finditer(text))


def place_of(text: str, position: int) -> Position:
    """Line and column of the character at ``position``."""
    return text.count("\n", 0, position) + 1, position - (text.rfind("\n", 0, position) + 1) + 1


def unreadable(file: str, place: Position | None, what: str, hint: str | None = None) -> InvalidInput:
    """The error for text that can't be read at all: ``file:line:column: what``."""
    where = f"{file}:{place[0]}:{place[1]}" if place else file
    details = {"file": file, **({"line": place[0], "column": place[1]} if place else {})}
    return InvalidInput(f"{where}: {what}", reason="invalidManifest", hint=hint, details=details)
