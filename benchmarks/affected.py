"""The tests that ran the lines that were changed, and a short walk on a cluster (`make affected`).

Reads what `make coverage` wrote, however old: changed lines are followed back through git to those of the tree that was
measured. Changed and new test files run whole; so do those that import a changed file of tests. As a plugin of pytest
(``-p benchmarks.affected``) it leaves out what isn't in ``CHOSEN``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.line_map import COMMIT, LineMap, find_map
from benchmarks.measurement import ROOT

CHOSEN = ROOT / ".coverage-affected"  # a test or a file of tests in each line
SECONDS = 240.0  # of all workers together, by what the tests took when coverage was measured
WALK = [
    f"tests/cluster/{test}"
    for test in (
        "test_first_steps.py::test_three_nodes_are_ready_and_hello_runs",
        "test_first_steps.py::test_a_guest_reaches_the_outside_and_stop_and_start_keep_its_disk",
        "test_first_steps.py::test_a_published_port_answers_on_the_machine_and_is_refused_a_second_time",
        "test_containers.py::test_a_container_from_creation_to_its_end",
    )
]
HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class Hunk(NamedTuple):
    """``old_count`` lines from ``old`` on became ``new_count`` from ``new`` on; where nothing was, it came after line ``old``."""

    old: int
    old_count: int
    new: int
    new_count: int


class Change(NamedTuple):
    """Of one file: its names in both trees, "" where it isn't there, and what differs."""

    before: str
    after: str
    hunks: list[Hunk]


def read_changes(text: str) -> list[Change]:
    """The changes in the output of ``git diff --unified=0``."""
    found: list[Change] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("diff --git "):
            a, _, b = line.removeprefix("diff --git a/").partition(" b/")
            found.append(Change(a, b, []))
        elif line.startswith("--- "):
            before = line[4:].removeprefix("a/")
            found[-1] = found[-1]._replace(before="" if before == "/dev/null" else before)
        elif line.startswith("+++ "):
            after = line[4:].removeprefix("b/")
            found[-1] = found[-1]._replace(after="" if after == "/dev/null" else after)
        elif match := HUNK.match(line):
            old, old_count, new, new_count = match.groups(default="1")
            found[-1].hunks.append(Hunk(int(old), int(old_count), int(new), int(new_count)))
    return found


def list_touched(hunks: Iterable[Hunk]) -> set[int]:
    """The old lines that were changed, and those beside which something came."""
    found: set[int] = set()
    for hunk in hunks:
        found |= set(range(hunk.old, hunk.old + hunk.old_count)) if hunk.old_count else {hunk.old, hunk.old + 1}
    return found


def find_origin(line: int, hunks: Sequence[Hunk]) -> set[int]:
    """The old line that became the new ``line``; of one that is new itself, those that it stands in place of."""
    moved = 0
    for hunk in hunks:
        first = hunk.new if hunk.new_count else hunk.new + 1
        if line < first:
            break
        if line < first + hunk.new_count:
            return list_touched([hunk])
        moved += hunk.old_count - hunk.new_count
    return {line + moved}


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def diff(*trees: str) -> list[Change]:
    return read_changes(git("diff", "--unified=0", "--find-renames", "--no-ext-diff", "--no-color", *trees))


def find_base() -> str:
    """What the work here began from: where its branch left main; on main itself the last commit, or the one before it if nothing
    has been changed since."""
    head = git("rev-parse", "HEAD").strip()
    for main in ("origin/main", "main"):
        found = subprocess.run(["git", "merge-base", "HEAD", main], cwd=ROOT, capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip() != head:
            return found.stdout.strip()
    return "HEAD" if git("status", "--porcelain").strip() else "HEAD~1"


def choose(
    map_: LineMap, changes: Sequence[Change], since_map: Sequence[Change], seconds: float
) -> tuple[list[str], int]:
    """The nearest tests of the changed lines of the product, ``seconds`` of them in all, and how many more there are.
    ``since_map``: from the tree that was measured to the one that ``changes`` begin at."""
    older = {change.after: change for change in since_map if change.after}
    found: set[str] = set()
    for change in changes:
        name = change.before or change.after
        if not name.startswith("src/weft/") or not name.endswith(".py"):
            continue
        was = older.get(name, Change(name, name, []))
        lines = {old for line in list_touched(change.hunks) for old in find_origin(line, was.hunks)}
        ran = map_.find(was.before or name, lines)
        if not ran:
            print(
                f"{name}: no test that was measured ran it; tests/host, tests/cluster or a new test may",
                file=sys.stderr,
            )
        found |= ran
    left, chosen = seconds, []
    for test in sorted(found, key=lambda test: (map_.distance(test), test)):
        left -= map_.seconds(test)
        if left > 0:
            chosen.append(test)
    return chosen, len(found) - len(chosen)


def list_test_files(changes: Sequence[Change]) -> list[str]:
    """Files of tests that changed, are new, or name a changed file of tests among what they import."""
    changed = [change.after for change in changes if change.after.startswith("tests/") and change.after.endswith(".py")]
    changed += git("ls-files", "--others", "--exclude-standard", "tests/*.py").split()
    found = {name for name in changed if Path(name).name.startswith("test_")}
    shared = {Path(name).stem for name in changed} - {Path(name).stem for name in found} - {"conftest", "__init__"}
    if shared:
        imports = re.compile(rf"^\s*(from|import) .*\b({'|'.join(sorted(shared))})\b", re.MULTILINE)
        found |= {
            str(path.relative_to(ROOT))
            for path in (ROOT / "tests").rglob("test_*.py")
            if imports.search(path.read_text())
        }
    return sorted(found)


def main(argv: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.affected", description=__doc__)
    options.add_argument("--since", help="the commit that is compared with (default: where this branch left main)")
    options.add_argument("--seconds", type=float, default=SECONDS, help=f"of tests at most (default {SECONDS:g})")
    given = options.parse_args(argv)
    if not find_map().exists() or not COMMIT.exists():
        print("no test has been measured here: make coverage says which test runs which line", file=sys.stderr)
        return 2
    base = given.since or find_base()
    changes, measured = diff(base), COMMIT.read_text().strip()
    try:
        since_map = diff(measured, base)
    except subprocess.CalledProcessError:
        print(f"git doesn't have the tree that was measured ({measured[:8]}) any more: make coverage", file=sys.stderr)
        return 2
    tests, more = choose(LineMap(), changes, since_map, given.seconds)
    files = list_test_files(changes)
    walk = WALK if any(change.after.startswith("src/") for change in changes) else []
    print(
        f"since {base[:8]} ({len(changes)} files, measured at {measured[:8]}): {len(tests)} tests that ran the changed lines"
        + (f" ({more} more take too long: make test)" if more else "")
        + f", {len(files)} files of tests"
        + (", a walk on a cluster" if walk else ""),
        file=sys.stderr,
    )
    chosen = [*walk, *files, *tests]
    CHOSEN.write_text("".join(f"{test}\n" for test in chosen))
    print("\n".join(sorted({test.partition("::")[0] for test in chosen if (ROOT / test.partition("::")[0]).exists()})))
    return 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the files that were named only the chosen tests, and those that nobody has measured yet."""
    chosen = set(CHOSEN.read_text().splitlines())
    map_ = LineMap()

    def is_chosen(item: pytest.Item) -> bool:
        name = item.nodeid.partition("::")[0]
        if name in chosen or item.nodeid in chosen:
            return True
        return item.nodeid not in map_ and not name.startswith(("tests/host", "tests/cluster"))

    left_out = [item for item in items if not is_chosen(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if is_chosen(item)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
