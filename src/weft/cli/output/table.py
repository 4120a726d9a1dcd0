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
    cells = [[clean(cell) for cell in row] for row in rows]
    shown = [i for i, column in enumerate(columns) if not column.flexible or any(row[i] for row in cells)]
    columns = [columns[i] for i in shown]
    cells = [[row[i] for i in shown] for row in cells]
    widths = [max([len(column.title), *(len(row[i]) for row in cells)]) for i, column in enumerate(columns)]
    if width is not None:
        _shrink(widths, columns, width)
    lines = [paint.color(_line([column.title for column in columns], columns, widths, Paint(False)), "bold")]
    lines += [_line(row, columns, widths, paint) for row in cells]
    return "\n".join(lines)


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


def _line(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int], paint: Paint) -> str:
    parts = []
    for cell, column, width in zip(row, columns, widths, strict=True):
        text = cell if len(cell) <= width else cell[: width - 1] + "…"
        parts.append(paint.phase(text.rjust(width) if column.right else text.ljust(width)))
    return GAP.join(parts).rstrip()
