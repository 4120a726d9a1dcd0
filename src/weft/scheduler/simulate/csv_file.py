"""Tables of text: rows from .csv and .csv.gz files, columns by name; errors name file, line and column."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from weft.objects.errors import InvalidInput, NotFound
from weft.objects.schema import suggest

T = TypeVar("T")
_MOST_FIELD_BYTES = 1 << 20


class Sheet:
    """One file, opened: ``header`` and the rows after it."""

    def __init__(self, path: Path) -> None:
        """Raises NotFound, InvalidInput."""
        self.path = path
        csv.field_size_limit(_MOST_FIELD_BYTES)
        self._rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        first = self._next()
        if not first or not any(first):
            raise InvalidInput(f"{path}: the file is empty", hint="the first line must name the columns")
        self.header = [name.strip().lower().lstrip("\ufeff") for name in first]
        twice = next((name for name in self.header if name and self.header.count(name) > 1), None)
        if twice is not None:
            raise InvalidInput(
                f"{path}:1: column {twice} appears twice", field=twice, hint="rename or remove one of them"
            )
        self.line = 1

    def require(self, *names: str) -> None:
        """Raises InvalidInput if one of these columns is missing."""
        for name in names:
            if name not in self.header:
                meant = suggest(name, self.header)
                hint = f"the columns are {', '.join(self.header)[:200]}" + (f"; did you mean {meant}?" if meant else "")
                if "cpu_milli" in self.header:
                    hint = "these are openb's columns; use --format openb"
                if len(self.header) == 1 and any(sign in self.header[0] for sign in ";\t"):
                    hint = "separate columns with commas"
                raise InvalidInput(f"{self.path}:1: missing column {name}", field=name, hint=hint)

    def unread(self, known: Sequence[str]) -> list[str]:
        return [name for name in self.header if name and name not in known]

    def rows(self) -> Iterator[list[str]]:
        """The cells of each row, as many as there are columns; empty lines are skipped. Raises InvalidInput."""
        width = len(self.header)
        while (row := self._next()) is not None:
            self.line = self._rows.line_num
            if len(row) < width:
                if not any(row):
                    continue
                row += [""] * (width - len(row))
            elif len(row) > width:
                if any(row[width:]):
                    raise InvalidInput(
                        f"{self.path}:{self.line}: {len(row)} cells, but {width} columns",
                        hint='quote cells with commas: "a,b"',
                    )
                del row[width:]
            yield row

    def refuse(self, column: str, problem: InvalidInput | str) -> NoReturn:
        """Raises InvalidInput for a cell of the row that was read last."""
        words = (
            problem if isinstance(problem, str) else problem.message.removeprefix(problem.field or column).lstrip(": ")
        )
        hint = None if isinstance(problem, str) else problem.hint
        details = {} if isinstance(problem, str) else problem.details
        raise InvalidInput(
            f"{self.path}:{self.line}: column {column}: {words}", field=column, hint=hint, details=details
        )

    def read(self, column: str, text: str, read: Callable[[str, str], T]) -> T:
        """``read(text, column)``; its InvalidInput gets file and line."""
        try:
            return read(text, column)
        except InvalidInput as problem:
            self.refuse(column, problem)

    def _next(self) -> list[str] | None:
        try:
            return next(self._rows, None)
        except csv.Error as problem:
            hint = "quotes begin and end a cell; a quote in one is written twice"
            raise InvalidInput(f"{self.path}:{self._rows.line_num}: {problem}", hint=hint) from None


def read_count(text: str, column: str) -> int:
    """A whole number, 0 or more. Raises InvalidInput."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1 << 40:
        raise InvalidInput(f"{column}: {text[:60]!r} is not a whole number of 0 or more")
    return value


def read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8")
    except FileNotFoundError:
        raise NotFound(
            f"{path}: no such file", hint="check the path; docs/reference/simulate.md says what the file has"
        ) from None
    except gzip.BadGzipFile as problem:
        raise InvalidInput(
            f"{path}: the compressed file is broken: {problem}",
            hint="gzip -t FILE tests it; docs/reference/simulate.md says what it has",
        ) from None
    except OSError as problem:
        raise InvalidInput(
            f"{path}: {problem.strerror or problem}",
            hint="give a file that you may read; docs/reference/simulate.md says what it has",
        ) from None
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
        raise InvalidInput(
            f"{path}:{line}: not UTF-8 text", hint="give a text file, plain or compressed with gzip"
        ) from None
    except (EOFError, zlib.error) as problem:
        raise InvalidInput(
            f"{path}: the compressed file is broken: {problem}",
            hint="gzip -t FILE tests it; docs/reference/simulate.md says what it has",
        ) from None
