"""Tables: aligned columns that fit the terminal; off one, whole cells and no colour. Pure.

Too wide a table loses whole columns, the last first, before a cell is cut: half an address is worth nothing. Only flexible
columns are cut, and the first one where nothing else is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.cli.output.local_time import localize
from weft.cli.output.terminal import Paint, clean

GAP = "  "
_LEAST = 12  # columns of text that a cut cell keeps


class Column(msgspec.Struct, frozen=True):
    """A column's title and manners; a ``flexible`` one may be cut, and is left out when it is empty. Those to ``keep`` are the
    last to be left out of a narrow table."""

    title: str
    right: bool = False
    flexible: bool = False
    keep: bool = False


def make_columns(*titles: str) -> tuple[Column, ...]:
    """Columns by their titles. A sign behind a title: ``>`` right-aligned, ``~`` flexible, ``!`` to keep."""
    return tuple(Column(title.rstrip(">~!"), *(sign in title for sign in ">~!")) for title in titles)


def draw_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    paint: Paint | None = None,
    header: bool = True,
) -> str:
    """The table as text; without ``header`` no titles. ``width`` None: nothing is cut."""
    paint = paint or Paint(False)
    table = [(column, [localize(clean(row[i])) for row in rows]) for i, column in enumerate(columns)]
    table = [(column, cells) for column, cells in table if not column.flexible or any(cells)]
    widths = [max(len(column.title) * header, max(map(len, cells), default=0)) for column, cells in table]
    if width is not None:
        shown = _fit_columns([column for column, _ in table], widths, width)
        table, widths = [table[i] for i in shown], list(shown.values())
    head = [_fit([column.title], column, size, Paint(False)) for (column, _), size in zip(table, widths, strict=True)]
    body = [_fit(cells, column, size, paint) for (column, cells), size in zip(table, widths, strict=True)]
    return "\n".join([*(paint.color(line, "bold") for line in _lines(head) if header), *_lines(body)])


def _fit_columns(columns: Sequence[Column], widths: Sequence[int], width: int) -> dict[int, int]:
    """The places of the columns that fit into ``width``, and how wide each is then."""
    least = [min(w, max(_LEAST, len(c.title))) if c.flexible else w for c, w in zip(columns, widths, strict=True)]
    shown = list(range(len(columns)))
    leaving = sorted(shown[1:], key=lambda i: (columns[i].keep, columns[i].flexible, -i))
    while _sum(least, shown) > width and leaving:
        shown.remove(leaving.pop(0))
    fitted = {i: least[i] for i in shown}
    spare = width - _sum(least, shown)
    for i in shown:
        more = max(0, min(spare, widths[i] - fitted[i]))
        fitted[i] += more
        spare -= more
    if spare < 0:
        fitted[shown[0]] = max(1, fitted[shown[0]] + spare)
    return fitted


def _sum(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[i] for i in shown) + len(GAP) * (len(shown) - 1)


def _fit(cells: Sequence[str], column: Column, width: int, paint: Paint) -> list[str]:
    """The cells of one column, each ``width`` wide; a longer one is cut."""
    cut = [cell if len(cell) <= width else cell[: width - 1] + "…" for cell in cells]
    wide = [cell.rjust(width) for cell in cut] if column.right else [cell.ljust(width) for cell in cut]
    return [paint.phase(cell) for cell in wide] if paint.active else wide


def _lines(table: Sequence[Sequence[str]]) -> list[str]:
    return [GAP.join(cells).rstrip() for cells in zip(*table, strict=True)]
