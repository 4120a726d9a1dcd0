"""TOML, read with the line of its keys as far as they stand at the beginning of a line. Pure."""

from __future__ import annotations

import re
import tomllib

from weft.cli.manifest.document import Document, Path, Position, unreadable
from weft.objects.errors import begin_small

_LOOK = "look at quotes, brackets and equals signs there and in the lines before"
_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")
_TABLE = re.compile(r"\s*(\[\[?)\s*([^\]#]+?)\s*\]")
_KEY = re.compile(r"""(\s*)((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def read_toml(text: str, file: str) -> list[Document]:
    """The one document in ``text``. Raises InvalidInput with file, line and column."""
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        why = str(problem)
        match = _PLACE.search(why)
        line = int(match[1]) if match and match[1] else len(text.splitlines()) or 1
        column = int(match[2]) if match and match[2] else 1
        why = _PLACE.sub("", why)
        raise unreadable(file, (line, column), f"TOML: {begin_small(why)}", _LOOK) from None
    except (ValueError, RecursionError) as problem:
        why = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise unreadable(file, (1, 1), f"TOML: {why}") from None
    return [Document(value, file, _find_places(text))]


def _find_places(text: str) -> dict[Path, Position]:
    places: dict[Path, Position] = {(): (1, 1)}
    counts: dict[Path, int] = {}
    table: Path = ()
    closing = ""  # the quotes that end a text over several lines
    for number, line in enumerate(text.splitlines(), 1):
        if closing:
            closing = "" if closing in line else closing
            continue
        if match := _TABLE.match(line):
            table = _resolve(_parts(match[2]), counts, match[1] == "[[")
            places.setdefault(table, (number, match.start(1) + 1))
        elif match := _KEY.match(line):
            places.setdefault((*table, *_parts(match[2])), (number, match.start(2) + 1))
            for quotes in ('"""', "'''"):
                if line.count(quotes) % 2:
                    closing = quotes
    return places


def _parts(dotted: str) -> Path:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def _resolve(names: Path, counts: dict[Path, int], item: bool) -> Path:
    """The path of a table, with the number of the newest item where a list of tables lies on the way."""
    path: Path = ()
    for place, name in enumerate(names):
        path = (*path, name)
        if item and place == len(names) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path
