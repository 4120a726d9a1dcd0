"""Rows in the chosen form: as a table, as CSV, as Markdown; only some columns, in some order. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import click

from weft.cli.output.form import Form
from weft.cli.output.table import Column, draw_table
from weft.cli.output.terminal import Paint, clean
from weft.objects.quantity import NONE
from weft.objects.schema import suggest


def draw_rows(
    form: Form,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    paint: Paint | None = None,
) -> str:
    """The rows, with titles if the form has them; without a line's end."""
    if form.name == "csv":
        return _write_csv(form, columns, rows)
    if form.name == "markdown":
        return _write_markdown(form, columns, rows)
    return draw_table(columns, rows, width, paint, form.header)


def _write_csv(form: Form, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if form.header:
        writer.writerow([column.title for column in columns])
    writer.writerows([["" if cell == NONE else clean(cell) for cell in row] for row in rows])
    return out.getvalue().removesuffix("\n")


def _write_markdown(form: Form, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    lines = [[column.title for column in columns], ["---:" if column.right else "---" for column in columns]]
    lines = lines if form.header else []
    lines += [[clean(cell).replace("\\", "\\\\").replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def choose(words: Sequence[str], titles: Sequence[str], flag: str) -> list[int]:
    """The places in ``titles`` of the columns that ``words`` name, in the order of the words. Raises UsageError."""
    known = {as_word(title): place for place, title in enumerate(titles)}
    places = []
    for word in words:
        if as_word(word) not in known:
            raise no_column(word, titles, flag)
        places.append(known[as_word(word)])
    return places


def no_column(word: str, titles: Sequence[str], flag: str) -> click.UsageError:
    """The error for a ``word`` that names no column."""
    known = [as_word(title) for title in titles]
    meant = suggest(as_word(word), known)
    return click.UsageError(
        f"{flag} {word}: no such column; " + (f"did you mean {meant}?" if meant else "there are " + ", ".join(known))
    )


def as_word(title: str) -> str:
    """A column's title as it is typed: ``CPU USED`` is cpu-used."""
    return title.strip().lower().replace(" ", "-").replace("_", "-")


def split_words(given: Sequence[str]) -> list[str]:
    """``("name,phase", "node")`` as words."""
    return [word.strip() for text in given for word in text.split(",") if word.strip()]
