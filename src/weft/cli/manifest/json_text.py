"""JSON, read with the place of every key. Duplicate keys are refused. Pure."""

from __future__ import annotations

import bisect
import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]  # the standard library's own reader of a string

from weft.cli.manifest.document import Document, Path, Position, place_of, unreadable
from weft.objects.errors import begin_small

_SPACE = re.compile(r"[ \t\r\n]*")
_ODD = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity|-?\d{4000,})')
_SCALAR = re.compile(r"[^\s,\]}]+")


def read_json(text: str, file: str) -> list[Document]:
    """The one document in ``text``. Raises InvalidInput with file, line and column."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as problem:
        raise unreadable(
            file,
            (problem.lineno, problem.colno),
            f"JSON: {begin_small(problem.msg)}",
            "look at commas, quotes and brackets there and in the lines before",
        ) from None
    except (ValueError, RecursionError) as problem:
        why = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise unreadable(file, place_of(text, _find_odd_value(text)), f"JSON: {why}") from None
    scan = _Scan(text, file)
    scan.read(0, ())
    return [Document(value, file, scan.places)]


def _find_odd_value(text: str) -> int:
    """Find the first value that is well written and yet no value of a manifest; 0 if it is the whole."""
    for match in _ODD.finditer(text):
        if match[1]:
            return match.start(1)
    return 0


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


class _Scan:
    """Walks once through text that is known to be JSON and notes where keys and items begin."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self.places: dict[Path, Position] = {}

    def _place(self, position: int) -> Position:
        line = bisect.bisect_right(self._lines, position)
        return line, position - self._lines[line - 1] + 1

    def _skip(self, position: int) -> int:
        match = _SPACE.match(self._text, position)
        return match.end() if match else position

    def read(self, position: int, path: Path) -> int:
        """Note the places in the value at ``position``; the position after it."""
        position = self._skip(position)
        self.places.setdefault(path, self._place(position))
        first = self._text[position]
        if first == "{":
            return self._read_object(position + 1, path)
        if first == "[":
            return self._read_list(position + 1, path)
        if first == '"':
            return int(scanstring(self._text, position + 1)[1])
        match = _SCALAR.match(self._text, position)
        return match.end() if match else position + 1

    def _read_object(self, position: int, path: Path) -> int:
        names: set[str] = set()
        while self._text[position := self._skip(position)] != "}":
            if self._text[position] == ",":
                position += 1
                continue
            name, after = scanstring(self._text, position + 1)
            if name in names:
                raise unreadable(self._file, self._place(position), f"{name!r} is given twice", "keep one of them")
            names.add(name)
            self.places[*path, name] = self._place(position)
            position = self.read(self._skip(after) + 1, (*path, name))
        return position + 1

    def _read_list(self, position: int, path: Path) -> int:
        index = 0
        while self._text[position := self._skip(position)] != "]":
            if self._text[position] == ",":
                position += 1
                continue
            position = self.read(position, (*path, index))
            index += 1
        return position + 1
