"""Which test ran which line, and for how long: what `make coverage` wrote down, for `make mutants` and `make affected`."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

import coverage

from benchmarks.measurement import ROOT

COMMIT = ROOT / ".coverage-commit"  # the tree that was measured


def find_map() -> Path:
    return Path(os.environ.get("COVERAGE_FILE", str(ROOT / ".coverage")))


class LineMap:
    """Tests by the lines that they ran, in the files as they were when coverage was measured."""

    def __init__(self) -> None:
        path = find_map()
        self._data = coverage.CoverageData(str(path))
        self._data.read()
        with contextlib.closing(sqlite3.connect(path)) as file:  # how many files each runs: few are near
            rows = file.execute(
                "SELECT context.context, COUNT(*) FROM line_bits JOIN context ON context.id = line_bits.context_id"
                " GROUP BY context.id"
            ).fetchall()
        self._width: dict[str, int] = {}
        for context, width in rows:
            if "::" in context:
                test = context.rpartition("|")[0]
                self._width[test] = max(width, self._width.get(test, 0))
        self._seconds: dict[str, float] = {}
        for times in sorted(ROOT.glob(".coverage.times*.xml")):
            for case in ElementTree.parse(times).iter("testcase"):
                self._seconds[f"{case.get('classname')} {case.get('name')}"] = float(case.get("time", 0))

    def __contains__(self, test: str) -> bool:
        return test in self._width

    def seconds(self, test: str) -> float:
        """How long it took when coverage was measured; a second if that isn't known."""
        file, _, rest = test.partition("::")
        name, bracket, given = rest.partition("[")
        *inside, name = name.split("::")
        module = ".".join([file.removesuffix(".py").replace("/", "."), *inside])
        return self._seconds.get(f"{module} {name}{bracket}{given}", 1.0)

    def distance(self, test: str) -> float:
        """The less, the nearer to each line that it runs: it is quick, and runs few files."""
        return (0.05 + self.seconds(test)) * self._width.get(test, 0)

    def find(self, file: str, lines: Iterable[int]) -> set[str]:
        """Tests that ran one of the lines. Where none did (they ran when the file was imported, or in another process): those
        that ran something else of the file."""
        by_line = self._data.contexts_by_lineno(str(ROOT / file))
        found = {context for line in lines for context in by_line.get(line, ()) if "::" in context}
        if not found:
            found = {context for contexts in by_line.values() for context in contexts if "::" in context}
        return {context.rpartition("|")[0] for context in found}
