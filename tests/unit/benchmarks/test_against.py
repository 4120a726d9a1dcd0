"""Two trees are compared by what their benchmarks print, run in turn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.against import Compared, Value, compare, read_rows, read_value, run_against

PRINTED = """## store_api

One api process.

| what | weft | peer | ratio | goal | kept |
|---|---|---|---|---|---|
| reads | 12,400/s (9,000–13,000, n=5) | bare 19,900/s | 62% | ≥ 80 % | yes |
| an agent, idle | 33.2 MB resident, 20.9 MB private | – | – | < 40 MB | yes |
| all are Running | none came up | – | – | – | – |
"""
BENCHMARK = """
import sys
from pathlib import Path
assert sys.argv[1:] == ["toy"], sys.argv
with Path(r"{log}").open("a") as log:
    log.write("{side}\\n")
print("## toy\\n\\n| what | weft | peer | ratio | goal | kept |\\n|---|---|---|---|---|---|")
print("| writes | {writes:,}/s | – | – | – | – |")
print("| answers | {answers} ms | – | – | – | – |")
print("| {side} alone | 1 ms | – | – | – | – |")
"""


def git(tree: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *who, *words], cwd=tree, check=True, capture_output=True, text=True).stdout.strip()


def write_benchmark(tree: Path, log: Path, side: str, writes: int, answers: int) -> None:
    (tree / "benchmarks/toy").mkdir(parents=True, exist_ok=True)
    (tree / "benchmarks/toy/__init__.py").touch()
    text = BENCHMARK.format(log=log, side=side, writes=writes, answers=answers)
    (tree / "benchmarks/__main__.py").write_text(text)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A history whose only commit writes 2,000/s and answers in 10 ms; its tree, changed, writes 1,000/s and takes 10 ms."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree, log = tmp_path / "clone", tmp_path / "log"
    (tree / "tools").mkdir(parents=True)
    install = tree / "tools/install"
    install.write_text(f"#!/bin/sh\nmkdir -p .venv/bin && ln -sf {sys.executable} .venv/bin/python\n")
    install.chmod(0o755)
    write_benchmark(tree, log, "then", 2000, 10)
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "the first")
    subprocess.run(["tools/install"], cwd=tree, check=True)
    write_benchmark(tree, log, "now", 1000, 10)
    return tree


def test_the_first_figure_of_a_row_counts_with_its_unit() -> None:
    assert read_rows(PRINTED) == {"reads": Value(12_400, "/s"), "an agent, idle": Value(33.2, "MB")}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1714 ms (1616–1784, n=20)", Value(1714, "ms")),
        ("85.5 µs", Value(85.5, "µs")),
        ("47%", Value(47, "%")),
        ("1,000 agents", Value(1000, "")),
        ("–", None),
    ],
)
def test_figures_are_read_as_benchmarks_write_them(text: str, value: Value | None) -> None:
    assert read_value(text) == value


def test_only_rows_of_both_sides_in_one_unit_are_compared() -> None:
    now = {"a": Value(2, "ms"), "b": Value(1, "ms"), "c": Value(1, "s"), "d": Value(1, "s")}
    then = {"a": Value(1, "ms"), "b": Value(0, "ms"), "c": Value(1, "ms")}
    assert [row.what for row in compare([(now, then)])] == ["a"]


@pytest.mark.parametrize(
    ("unit", "now", "verdict"),
    [
        ("/s", 120, "better"),
        ("/s", 96, "same"),
        ("/s", 80, "worse"),
        ("ms", 120, "worse"),
        ("MB", 80, "better"),
        ("%", 80, "–"),
    ],
)
def test_the_unit_says_which_side_is_better(unit: str, now: float, verdict: str) -> None:
    assert Compared("x", unit, [now], [100]).verdict == verdict


def test_both_trees_run_their_own_benchmark_in_turn_and_the_page_says_what_came_out(
    clone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "measured-archive.md"
    page.write_text("# Measured\n\n## toy against abcdef0\n\nOld.\n\n## other\n\nKept.\n")
    run_against("HEAD", ["toy"], 2, clone, page)
    assert (tmp_path / "log").read_text().split() == ["now", "then", "then", "now"]
    text, commit = page.read_text(), git(clone, "rev-parse", "HEAD")[:7]
    assert "Old." not in text and "## other\n\nKept." in text
    assert "| writes | 1,000/s | 2,000/s | 0.50× (0.50–0.50) | **worse** |\n| answers | 10 ms | 10 ms | 1.00×" in text
    assert (
        f"## toy against {commit}\n" in text and "Measured in one of the two trees only: now alone; then alone." in text
    )
    assert f"| [toy against {commit}](#toy-against-{commit}) |" in text and text.startswith(
        "# Measured against older commits"
    )
    assert text[text.index("\n## toy") + 1 :].startswith(capfd.readouterr().out.rstrip())
    before = git(clone, "worktree", "list")
    run_against(commit, ["toy"], 1, clone, page)
    assert git(clone, "worktree", "list") == before and page.read_text().count("## toy against") == 1


def test_neither_side_compiles_its_source_at_each_start(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    looks = "from importlib.util import cache_from_source as kept\n"
    looks += "side = 'kept' if Path(kept('src/product.py')).exists() else 'compiled each time'\n"
    (clone / "src").mkdir()
    (clone / "src/product.py").write_text("answer = 42\n")
    main = clone / "benchmarks/__main__.py"
    main.write_text(main.read_text().replace("with Path", looks + "with Path").replace('"now\\n"', 'side + "\\n"'))
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "the second")
    run_against("HEAD", ["toy"], 1, clone, tmp_path / "page")
    assert (tmp_path / "log").read_text().splitlines() == ["kept", "kept"]


def test_a_commit_that_is_not_there_is_named(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="'nowhere' names no commit of this history"):
        run_against("nowhere", ["toy"], 1, clone, tmp_path / "page")
