"""Tables: aligned columns that fit the terminal; off one, whole cells and no colour. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.cli.terminal import Paint, clean

GAP = "  "
_LEAST = 4  # columns of text that a cut cell keeps


class Column(msgspec.Struct, frozen=True):
    """A column's title and manners; a ``flexible`` one is cut first and left out when it is empty."""

    title: str
    right: bool = False
    flexible: bool = False


def draw_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None, paint: Paint | None = None
) -> str:
    """The table as text, with titles. ``width`` None: nothing is cut."""
    paint = paint or Paint(False)
    table = [(column, [clean(row[i]) for row in rows]) for i, column in enumerate(columns)]
    table = [(column, cells) for column, cells in table if not column.flexible or any(cells)]
    widths = [max(len(column.title), max(map(len, cells), default=0)) for column, cells in table]
    if width is not None:
        _shrink(widths, [column for column, _ in table], width)
    head = [_fit([column.title], column, room, Paint(False)) for (column, _), room in zip(table, widths, strict=True)]
    body = [_fit(cells, column, room, paint) for (column, cells), room in zip(table, widths, strict=True)]
    return "\n".join([*(paint.color(line, "bold") for line in _lines(head)), *_lines(body)])


def _shrink(widths: list[int], columns: Sequence[Column], width: int) -> None:
    """Make ``widths`` fit: first the flexible columns, then always the widest."""
    over = sum(widths) + len(GAP) * (len(widths) - 1) - width
    for i, column in enumerate(columns):
        if column.flexible and over > 0:
            cut = min(over, max(0, widths[i] - max(_LEAST, len(column.title), 12)))
            widths[i] -= cut
            over -= cut
    while over > 0:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= _LEAST:
            return
        widths[widest] -= 1
        over -= 1


def _fit(cells: Sequence[str], column: Column, width: int, paint: Paint) -> list[str]:
    """The cells of one column, each ``width`` wide; a longer one is cut."""
    cut = [cell if len(cell) <= width else cell[: width - 1] + "…" for cell in cells]
    wide = [cell.rjust(width) for cell in cut] if column.right else [cell.ljust(width) for cell in cut]
    return [paint.phase(cell) for cell in wide] if paint.active else wide


def _lines(table: Sequence[Sequence[str]]) -> list[str]:
    return [GAP.join(cells).rstrip() for cells in zip(*table, strict=True)]
