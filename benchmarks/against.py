"""``python -m benchmarks.against COMMIT [--rounds N] [NAME …]``: the benchmarks of a commit and of the working tree, in turn.

The commit gets a tree and a .venv of its own, in the user's cache folder, which are kept for the next time. Each side runs
its own benchmarks, as ``python -m benchmarks NAME`` prints them; one that runs alone (``python -m benchmarks.NAME``) measures the
source of any commit, so both sides run the working tree's. Rows that both have are compared by the first figure in
them. What came out stands in docs/measured-archive.md too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.measurement import ARCHIVE, ROOT, compile_tree, where, write_text

ROUNDS = 3
NOISE = 0.05  # so much worse is worse
_FIGURE = re.compile(r"([\d,]*\d(?:\.\d+)?) ?(µs|ms|s|m|h|KB|KiB|MB|MiB|GB|GiB|%|/s)?(?![\w%])")
_MORE_IS_BETTER = ("/s",)
_LESS_IS_BETTER = ("µs", "ms", "s", "m", "h", "KB", "KiB", "MB", "MiB", "GB", "GiB")


class Value(msgspec.Struct, frozen=True):
    """The first figure of a row: its number and unit ("" if none that is known)."""

    number: float
    unit: str


class Compared(msgspec.Struct, frozen=True):
    """One row of both sides: each round's ``now`` and ``then``, in one unit."""

    what: str
    unit: str
    now: list[float]
    then: list[float]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.now, self.then, strict=True)]

    @property
    def verdict(self) -> Literal["better", "same", "worse", "–"]:
        """Whether the median is beyond the noise, and to which side; "–" for units that don't say which side is better."""
        ratio = statistics.median(self.ratios)
        if abs(ratio - 1) <= NOISE and self.unit in _MORE_IS_BETTER + _LESS_IS_BETTER:
            return "same"
        if self.unit in _MORE_IS_BETTER:
            return "better" if ratio > 1 else "worse"
        if self.unit in _LESS_IS_BETTER:
            return "better" if ratio < 1 else "worse"
        return "–"


def read_value(text: str) -> Value | None:
    """The first figure in a cell such as ``3,775/s (3,723–4,167, n=5)`` or ``33.2 MB resident``."""
    found = _FIGURE.search(text)
    return None if found is None else Value(float(found[1].replace(",", "")), found[2] or "")


def read_rows(printed: str) -> dict[str, Value]:
    """Rows of the tables in a section that ``python -m benchmarks`` prints, by their first cell."""
    rows: dict[str, Value] = {}
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or len(cells) < 2 or cells[0] == "what":
            continue
        if (value := read_value(cells[1])) is not None:
            rows[cells[0]] = value
    return rows


def compare(rounds: Sequence[tuple[Mapping[str, Value], Mapping[str, Value]]]) -> list[Compared]:
    """Rows that both sides show in every one of ``rounds`` (now, then), in the same unit and not as nothing."""
    found: list[Compared] = []
    for what, first in rounds[0][0].items():
        sides = [(now.get(what), then.get(what)) for now, then in rounds]
        kept = [(a.number, b.number) for a, b in sides if a and b and a.unit == b.unit == first.unit and b.number]
        if len(kept) == len(rounds):
            found.append(Compared(what, first.unit, [a for a, _ in kept], [b for _, b in kept]))
    return found


def describe(name: str, commit: str, rows: Sequence[Compared], missing: Sequence[str]) -> str:
    """The section of docs/measured-archive.md."""
    lines = [
        f"## {name} against {commit}",
        "",
        f"Both trees' own benchmark, in turn, {len(rows[0].now) if rows else 0} rounds: medians, and the range of the rounds' "
        "ratios.",
        "",
        f"_{where()}_",
        "",
        f"| what | now | {commit} | now / then | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = row.ratios
        verdict = "**worse**" if row.verdict == "worse" else row.verdict
        spread = f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"
        lines.append(
            f"| {row.what} | {_shown(row.now, row.unit)} | {_shown(row.then, row.unit)} | {spread} | {verdict} |"
        )
    if missing:
        lines += ["", "Measured in one of the two trees only: " + "; ".join(missing) + "."]
    return "\n".join(lines) + "\n"


def _shown(values: Sequence[float], unit: str) -> str:
    middle = statistics.median(values)
    number = f"{middle:,.0f}" if middle >= 1000 else f"{middle:.4g}"
    return number + unit if unit in ("/s", "%", "") else f"{number} {unit}"


def full_name(commit: str, root: Path = ROOT) -> str:
    """The commit's whole hash. Ends the program where the history has none of that name."""
    words = ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
    found = subprocess.run(words, cwd=root, capture_output=True, text=True)
    if found.returncode != 0:
        raise SystemExit(f"{commit!r} names no commit of this history; git log shows them")
    return found.stdout.strip()


def make_tree(commit: str, root: Path = ROOT) -> Path:
    """A tree with that commit and its .venv, ready to run; one that was made before is used again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    clone = f"{root.name}-{hashlib.sha256(bytes(root)).hexdigest()[:8]}"
    tree = cache / "weft" / "bench" / clone / commit[:12]
    if not (tree / ".git").exists():
        shutil.rmtree(tree, ignore_errors=True)
        subprocess.run(["git", "worktree", "prune"], cwd=root, check=True)
        tree.parent.mkdir(parents=True, exist_ok=True)
        words = ["git", "worktree", "add", "--quiet", "--detach", str(tree), commit]
        subprocess.run(words, cwd=root, check=True, stdout=sys.stderr)
    images, theirs = root / ".weft" / "cache", tree / ".weft" / "cache"
    if images.exists() and not theirs.exists():  # kernels and images are kept by what they are made of
        theirs.parent.mkdir(exist_ok=True)
        theirs.symlink_to(images.resolve())
    subprocess.run(["tools/install"], cwd=tree, check=True, stdout=sys.stderr)
    return tree


def run_bench(tree: Path, name: str, root: Path = ROOT) -> dict[str, Value] | None:
    """The rows of the tree's own benchmark, or of one of ``root`` that runs alone; None if there is none of that name."""
    python = str(tree / ".venv/bin/python")
    if (root / "benchmarks" / name / "__main__.py").exists():
        compile_tree(tree)
        return _read_run([python, "-m", f"benchmarks.{name}"], root, {"PYTHONPATH": str(tree / "src")})
    if not (tree / "benchmarks" / name / "__init__.py").exists():
        return None
    compile_tree(tree)  # on both sides, however old: what one of them compiles at each start counts as slower code
    return _read_run([python, "-m", "benchmarks", name], tree, {})


def _read_run(words: Sequence[str], folder: Path, more: Mapping[str, str]) -> dict[str, Value]:
    done = subprocess.run(words, cwd=folder, env={**os.environ, **more}, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed in {folder}")
    return read_rows(done.stdout)


def run_against(commit: str, names: Sequence[str], rounds: int, root: Path = ROOT, page: Path = ARCHIVE) -> None:
    """Run each of ``names`` in both trees ``rounds`` times, print and write down what came out."""
    commit = full_name(commit, root)
    short = commit[:7]
    tree = make_tree(commit, root)
    print(f"{short} is in {tree}; git worktree remove --force {tree} takes it away", file=sys.stderr)
    for name in names:
        taken: list[tuple[dict[str, Value], dict[str, Value]]] = []
        for number in range(rounds):
            sides: dict[Path, dict[str, Value] | None] = {}
            for side in (tree, root) if number % 2 else (root, tree):
                print(f"… {name}, round {number + 1} of {rounds}, {'now' if side == root else short}", file=sys.stderr)
                sides[side] = run_bench(side, name, root)
            now, then = sides[root], sides[tree]
            if now is None or then is None:
                print(f"{name} is not in both, so it is not compared", file=sys.stderr)
                break
            taken.append((now, then))
        else:
            rows = compare(taken)
            missing = sorted((taken[0][0].keys() | taken[0][1].keys()) - {row.what for row in rows})
            section = describe(name, short, rows, missing)
            write_text(section, replaces=rf"{re.escape(name)} against \w+", page=page)
            print(section, flush=True)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("names", nargs="*", help="benchmarks; all if none is named")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_intermixed_args(words)
    known = sorted(p.parent.name for p in (ROOT / "benchmarks").glob("*/__init__.py") if p.parent.name != "soak")
    if unknown := [name for name in given.names if name not in known]:
        raise SystemExit(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(known)}")
    if given.rounds < 1:
        raise SystemExit("--rounds: at least 1")
    run_against(given.commit, given.names or known, given.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
