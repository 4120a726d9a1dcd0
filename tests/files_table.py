"""docs/reference/files.md as a test reads it: which files there may be, and how far those grow that are written to on and on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from weft.objects.quantity import parse_bytes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/reference/files.md"
_PLACEHOLDER = re.compile(r"(?<![A-Za-z])(ID|UID|NAME|NODE|NUMBER|SHA256|DIGEST|KEY)(?![A-Za-z])")


class Grows(NamedTuple):
    """A row of the last table. ``most_bytes`` None: as far as the disk goes."""

    pattern: re.Pattern[str]
    most_bytes: int | None
    shown_by: str


def read_rows() -> list[Grows]:
    rows = []
    table = PAGE.read_text().partition("# Files that grow")[2]
    for line in table.splitlines():
        if line.startswith("| `"):
            file, _, bound, shown = (cell.strip() for cell in line.strip("|").split("|"))
            size = re.match(r"(\d+) ([KMG]iB)", bound)
            if bound == "as above":
                before = rows[[row.shown_by for row in rows].index(shown.strip("`"))]
                rows.append(Grows(to_pattern(file.strip("`")), before.most_bytes, shown.strip("`")))
                continue
            most = parse_bytes(f"{size[1]}{size[2]}", "bound") if size else None
            assert most or bound.startswith("the disk's capacity"), f"{file}: {bound} begins with no size"
            rows.append(Grows(to_pattern(file.strip("`")), most, shown.strip("`")))
    return rows


def to_pattern(file: str) -> re.Pattern[str]:
    """A name of the page's: what is in capitals is any word, a folder is all that is below it."""
    text = _PLACEHOLDER.sub("\0", file.removesuffix("/"))
    pattern = re.escape(text).replace("\0", "[^/]+")
    return re.compile(pattern + ("/.+" if file.endswith("/") else ""))


def find_undescribed(opened: list[tuple[str, int]]) -> list[str]:
    """Of files that something appends to (names as in the table, and their sizes), those in no row, and those over their bound."""
    rows, found = read_rows(), []
    for name, size in opened:
        row = next((row for row in rows if row.pattern.fullmatch(name)), None)
        if row is None:
            found.append(f"{name}: no row of {PAGE.name} says how far it grows")
        elif row.most_bytes is not None and size > row.most_bytes:
            found.append(f"{name}: {size} bytes, over its bound of {row.most_bytes}")
    return found
