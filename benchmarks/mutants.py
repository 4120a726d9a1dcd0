"""Whether tests notice small faults: a fixed sample of them, each run against the tests that cover its line (`make mutants`).

Reads what `make coverage` wrote (which test ran which line), keeps what it found in .mutants/ and goes on from there, and puts
the figures into docs/measured.md. A fault is killed when one of the tests fails, survives when none does, and is undecided when
they take too long. The same code gives the same sample; a fault keeps its place in it while its function stays as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import coverage
import msgspec

from benchmarks.measurement import ROOT, Figure, Measurement, write_section
from benchmarks.mutating import Mutant, find_mutants

SEED = "weft"
# Half of the sample is what writes and what guards, half what decides.
ROOMS = (
    ("src/weft/store", "src/weft/trust", "src/weft/client", "src/weft/api", "src/weft/contracts/durable.py"),
    (
        "src/weft/scheduler",
        "src/weft/controllers",
        "src/weft/kinds",
        "src/weft/objects",
        "src/weft/language",
        "src/weft/transfer",
    ),
)
LEFT_OUT = ("store/etcd", "store/remote", "client/streams.py", "api/openapi.py", "scheduler/own/kit.py")
MOST_TESTS = 60  # of those that run a line, the ones that run the fewest others
SECONDS = 90.0
WORK = ROOT / ".mutants"
SUMMARY = (
    "Faults that a program makes in the text of store, trust, client and API (half of them) and of what decides (the other half), "
    "one at a time: a comparison flipped, a condition, a statement or a commit's precondition dropped, a number off by one. Each "
    "is run against the tests of tests/unit, tests/scenario and tests/conformance that run its line, the nearest "
    f"{MOST_TESTS} at most, for {SECONDS:g} s at most."
)


class Result(msgspec.Struct, frozen=True):
    id: str
    end: str  # killed, survived, undecided, or not run: no test of these comes by
    by: str  # the test that killed it
    seconds: float


def choose(count: int) -> list[Mutant]:
    chosen: list[Mutant] = []
    for rooms in ROOMS:
        files = [
            path for room in rooms for path in ([ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py"))
        ]
        names = sorted(str(path.relative_to(ROOT)) for path in files)
        found = [
            mutant
            for name in names
            if not any(part in name for part in LEFT_OUT)
            for mutant in find_mutants(name, (ROOT / name).read_text())
        ]
        found.sort(key=lambda mutant: hashlib.sha256(f"{SEED} {mutant.id}".encode()).digest())
        sorts = [
            [mutant for mutant in found if mutant.fault == fault] for fault in sorted({one.fault for one in found})
        ]
        in_turn = [mutant for row in zip_longest(*sorts) for mutant in row if mutant is not None]
        chosen += in_turn[: count // len(ROOMS)]  # as many of each sort
    return chosen


class Tests:
    """Which tests run a line, the nearest first."""

    def __init__(self) -> None:
        path = os.environ.get("COVERAGE_FILE", str(ROOT / ".coverage"))
        self._data = coverage.CoverageData(path)
        self._data.read()
        with contextlib.closing(sqlite3.connect(path)) as file:  # how many files each runs: few are near
            self._width = dict(
                file.execute(
                    "SELECT context.context, COUNT(*) FROM line_bits JOIN context ON context.id = line_bits.context_id"
                    " GROUP BY context.id"
                ).fetchall()
            )

    def of(self, file: str, first: int, last: int) -> list[str]:
        lines = self._data.contexts_by_lineno(str(ROOT / file))
        contexts = {context for line in range(first, last + 1) for context in lines.get(line, ()) if "::" in context}
        near = sorted(contexts, key=lambda context: (self._width.get(context, 0), context))
        return list(dict.fromkeys(context.rpartition("|")[0] for context in near))[:MOST_TESTS]


def try_one(mutant: Mutant, tests: Sequence[str], tree: Path) -> Result:
    """Run the tests over a copy of the source with the fault in it."""
    if not tests:
        return Result(mutant.id, "not run", "", 0.0)
    file = tree / Path(mutant.file).relative_to("src")
    text = (ROOT / mutant.file).read_text()
    file.unlink()  # a link to the one that stays as it is
    file.write_text(mutant.apply(text))
    began = time.monotonic()
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--tb=no",
        "--timeout=60",
    ]
    try:
        compile(file.read_text(), str(file), "exec")
        process = subprocess.Popen(
            [*words, *tests],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=SECONDS)
            failed = [line.split(" ")[1] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
            ends = {0: "survived", 5: "undecided"}  # 5: none was found; else one failed, or they could not even begin
            end, by = ends.get(process.returncode, "killed"), failed[0] if failed else ""
        except subprocess.TimeoutExpired:
            end, by = "undecided", ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finally:
        file.unlink()
        os.link(ROOT / mutant.file, file)
    return Result(mutant.id, end, by, round(time.monotonic() - began, 1))


def read_results() -> dict[str, Result]:
    path = WORK / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {result.id: result for result in (msgspec.json.decode(line, type=Result) for line in lines)}


def main(argv: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    options.add_argument("--count", type=int, default=160)
    options.add_argument("--seconds", type=float, help="begin no other after so long")
    options.add_argument("--again", action="store_true", help="try what survived or was undecided once more")
    given = options.parse_args(argv)
    WORK.mkdir(exist_ok=True)
    known, chosen, tests = read_results(), choose(given.count), Tests()
    if given.again:
        known = {id_: result for id_, result in known.items() if result.end == "killed"}
    tree = WORK / "src"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "src", tree, copy_function=os.link)
    began = time.monotonic()
    for mutant in chosen:
        if mutant.id in known or (given.seconds and time.monotonic() - began > given.seconds):
            continue
        last = mutant.line + mutant.was.count("\n")
        tests_of = tests.of(mutant.file, mutant.line, last)
        result = try_one(mutant, tests_of, tree)
        known[mutant.id] = result
        if tests_of:  # else a later run of the tests may come by
            with (WORK / "results.jsonl").open("ab") as out:
                out.write(msgspec.json.encode(result) + b"\n")
        print(f"{result.end:9} {mutant.describe()}" + (f"  [{result.by}]" if result.by else ""), flush=True)
    shutil.rmtree(tree)
    tell([(mutant, known[mutant.id]) for mutant in chosen if mutant.id in known], len(chosen))
    return 0


def tell(done: Sequence[tuple[Mutant, Result]], of: int) -> None:
    """The page's section, and the survivors in .mutants/survivors.txt."""
    left = [f"{result.end:9} {mutant.describe()}" for mutant, result in done if result.end != "killed"]
    (WORK / "survivors.txt").write_text("".join(f"{line}\n" for line in left))
    ends = Counter(result.end for _, result in done)
    figures = [
        Figure(f"{len(done)} of a sample of {of}", ", ".join(f"{number} {end}" for end, number in sorted(ends.items())))
    ]
    for what, key in (("room", lambda one: one.file.split("/")[2]), ("fault", lambda one: one.fault)):
        for name in sorted({key(mutant) for mutant, _ in done}):
            of_it = [result.end for mutant, result in done if key(mutant) == name]
            figures.append(Figure(f"{what}: {name}", f"{of_it.count('killed')} of {len(of_it)} killed"))
    print(write_section(Measurement("mutants", SUMMARY, figures)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
