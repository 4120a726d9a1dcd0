"""Whether tests notice small faults: a fixed sample of them, each run against the tests that cover its line (`make mutants`).

Reads what `make coverage` wrote (which test ran which line, and for how long it ran), keeps what it found in .mutants/ and goes on
from there, and puts the figures into docs/measured.md. A fault is killed when one of the tests fails, survives when none does, and
is undecided when they take too long. The same code gives the same sample; a fault keeps its place in it while its function stays as
it is. Tests run in children of this process, which has imported what they need but for weft.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import msgspec
import pytest

from benchmarks.line_map import LineMap
from benchmarks.measurement import ROOT, Figure, Measurement, write_section
from benchmarks.mutating import Mutant, find_mutants

SEED = "weft"
# Half of the sample is what writes and what guards, half what decides.
ROOMS = (
    (
        "src/weft/store",
        "src/weft/trust",
        "src/weft/client",
        "src/weft/informer",
        "src/weft/protocol",
        "src/weft/api",
        "src/weft/contracts/durable_file.py",
    ),
    (
        "src/weft/scheduler",
        "src/weft/controllers",
        "src/weft/kinds",
        "src/weft/objects",
        "src/weft/language",
        "src/weft/transfer",
    ),
)
LEFT_OUT = (
    "store/etcd",
    "store/remote",
    "protocol/tls_streams.py",
    "api/description.py",
    "scheduler/own_policies/kit.py",
)
PRELOADED = ("asyncio", "cryptography.x509", "httptools", "hypothesis", "hypothesis.stateful", "msgspec", "uvloop")
MOST_TESTS = 120  # of those that run a line, the quickest that run few others
TEST_SECONDS = 40.0  # that these take together
SECONDS = 240.0
WALKS = (
    "test_controllers_commits.py",
    "test_api_commits.py",
)  # of preconditions: near to each, though they run all
AT_ONCE = 2
WORK = ROOT / ".mutants"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")  # id, what it is, and why nobody could notice it
SUMMARY = (
    "Faults that a program makes in the text of store, trust, client and API (half of them) and of what decides (the other half), "
    "one at a time: a comparison flipped, a condition, a statement or a commit's precondition dropped, a number off by one. Each "
    "is run against the tests of tests/unit, tests/scenario and tests/conformance that run its line, the nearest "
    f"{MOST_TESTS} at most that take {TEST_SECONDS:g} s together, for {SECONDS:g} s at most."
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
    """Which tests run a line: the nearest and quickest first."""

    def __init__(self, first: Sequence[str] = ()) -> None:
        self._first = tuple(first)
        self._map = LineMap()

    def of(self, mutant: Mutant) -> list[str]:
        found = self._map.find(mutant.file, range(mutant.line, mutant.line + mutant.was.count("\n") + 1))
        tests: dict[str, float] = {}
        for test in found:
            walks = "precondition" in mutant.fault and any(walk in test for walk in WALKS)
            tests[test] = 0.0 if walks or test.startswith(self._first) else self._map.distance(test)
        chosen: list[str] = []
        left = TEST_SECONDS
        for test in sorted(tests, key=lambda test: (tests[test], test))[:MOST_TESTS]:
            left -= self._map.seconds(test)
            if left > 0 or not chosen or not tests[test]:
                chosen.append(test)
        return chosen or list(self._first)  # what runs in a process of its own, coverage gives to no test


class Trial:
    """The tests of one fault, run in a child over a copy of the source with the fault in it."""

    def __init__(self, mutant: Mutant, tests: Sequence[str], tree: Path) -> None:
        self.mutant, self.tree, self._began = mutant, tree, time.monotonic()
        self._file = tree / Path(mutant.file).relative_to("src")
        self._said = tree.with_suffix(".said")
        text = mutant.apply((ROOT / mutant.file).read_text())
        self._file.unlink()  # a link to the one that stays as it is
        self._file.write_text(text)
        self._pid = os.fork()
        if self._pid == 0:
            self._run(tests)

    def _run(self, tests: Sequence[str]) -> None:
        status = 1
        try:
            os.setsid()
            said = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(said, stream)
            os.chdir(ROOT)
            # WEFT_COLD: none of these boots a guest, so no warm one is kept ready.
            os.environ |= {"PYTHONPATH": str(self.tree), "WEFT_COLD": "1"}
            sys.path.insert(0, str(self.tree))
            words = "-x -q --tb=no --timeout=100 -p no:cacheprovider -p no:xdist -p no:cov".split()
            status = int(pytest.main([*words, *tests]))
            sys.stdout.flush()
        finally:
            os._exit(status)

    def ended(self) -> Result | None:
        """None while the tests run."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        seconds = time.monotonic() - self._began
        if pid == 0 and seconds < SECONDS:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        if pid == 0:
            os.waitpid(self._pid, 0)
        self._file.unlink()
        os.link(ROOT / self.mutant.file, self._file)
        said = self._said.read_text(errors="replace") if self._said.exists() else ""
        failed = [line.split(" ")[1] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        # 5: none was found; else one failed, or they could not even begin.
        ends = {0: "survived", 5: "undecided"}
        end = "undecided" if pid == 0 else ends.get(os.waitstatus_to_exitcode(status), "killed")
        return Result(self.mutant.id, end, failed[0] if failed and end == "killed" else "", round(seconds, 1))


def read_results() -> dict[str, Result]:
    path = WORK / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {result.id: result for result in (msgspec.json.decode(line, type=Result) for line in lines)}


def main(argv: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    options.add_argument("--count", type=int, default=160)
    options.add_argument("--seconds", type=float, help="begin no other after so long")
    options.add_argument("--again", action="store_true", help="try what survived or was undecided once more")
    options.add_argument(
        "--first", nargs="*", default=[], metavar="FILE", help="of the tests, those of these files first"
    )
    given = options.parse_args(argv)
    WORK.mkdir(exist_ok=True)
    known, chosen, tests = read_results(), choose(given.count), Tests(given.first)
    if given.again:
        known = {id_: result for id_, result in known.items() if result.end == "killed"}
    for module in PRELOADED:
        importlib.import_module(module)
    trees = [WORK / f"src-{number}" for number in range(AT_ONCE)]
    for tree in trees:
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(ROOT / "src", tree, copy_function=os.link)
    began = time.monotonic()
    waiting = [mutant for mutant in chosen if mutant.id not in known]
    running: list[Trial] = []
    while waiting or running:
        while waiting and trees and not (given.seconds and time.monotonic() - began > given.seconds):
            mutant = waiting.pop(0)
            tests_of = tests.of(mutant)
            if tests_of:
                running.append(Trial(mutant, tests_of, trees.pop()))
            else:  # a later run of the tests may come by
                known[mutant.id] = Result(mutant.id, "not run", "", 0.0)
        if not running:
            break
        time.sleep(0.1)
        for trial in list(running):
            if (result := trial.ended()) is not None:
                running.remove(trial)
                trees.append(trial.tree)
                known[trial.mutant.id] = result
                with (WORK / "results.jsonl").open("ab") as out:
                    out.write(msgspec.json.encode(result) + b"\n")
                by = f"  [{result.by}]" if result.by else ""
                print(f"{result.end:9} {result.seconds:5} s {trial.mutant.describe()}{by}", flush=True)
    for tree in trees:
        shutil.rmtree(tree)
    tell([(mutant, known[mutant.id]) for mutant in chosen if mutant.id in known], len(chosen))
    return 0


def tell(done: Sequence[tuple[Mutant, Result]], of: int) -> None:
    """The page's section, and the survivors in .mutants/survivors.txt."""
    same = {line.split(" ")[0] for line in EQUIVALENT.read_text().splitlines()}
    done = [
        (mutant, msgspec.structs.replace(result, end="equivalent") if mutant.id in same else result)
        for mutant, result in done
    ]
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
