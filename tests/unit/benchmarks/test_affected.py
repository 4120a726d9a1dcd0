"""Which tests a change affects, though the map of tests is of an older tree: benchmarks/affected.py."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from benchmarks import affected
from benchmarks.affected import Change, Hunk, choose, find_origin, list_touched, read_changes

MEASURED = [f"line {number}" for number in range(1, 21)]


class Lines:
    """A map in which each line of a.py was run by the test of its number."""

    def find(self, file: str, lines: Iterable[int]) -> set[str]:
        return {f"test-{line}" for line in lines if 1 <= line <= 20} if file == "src/weft/a.py" else set()

    def distance(self, test: str) -> float:
        return float(test.removeprefix("test-"))

    def seconds(self, test: str) -> float:
        return 1.0


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with src/weft/a.py as it was measured, at the tag ``measured``."""
    monkeypatch.setattr(affected, "ROOT", tmp_path)
    (tmp_path / "src" / "weft").mkdir(parents=True)
    for words in (
        ["init", "-q", "-b", "main"],
        ["config", "user.email", "a@example.org"],
        ["config", "user.name", "a"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    commit(tmp_path, MEASURED)
    subprocess.run(["git", "tag", "measured"], cwd=tmp_path, check=True)
    return tmp_path


def write(tree: Path, lines: list[str], name: str = "a.py") -> None:
    (tree / "src" / "weft" / name).write_text("".join(f"{line}\n" for line in lines))


def commit(tree: Path, lines: list[str]) -> None:
    write(tree, lines)
    subprocess.run(["git", "add", "-A"], cwd=tree, check=True)
    subprocess.run(["git", "commit", "-qm", "x"], cwd=tree, check=True)


def chosen(seconds: float = 100.0) -> list[str]:
    base = affected.find_base()
    return choose(Lines(), affected.diff(base), affected.diff("measured", base), seconds)[0]  # type: ignore[arg-type]


def test_a_changed_line_is_found_in_an_older_tree_whatever_came_before_it(tree: Path) -> None:
    later = ["new", "new", *MEASURED[:4], *MEASURED[8:]]  # two more lines, then four less
    commit(tree, later)
    write(tree, [*later[:10], "changed", *later[11:]])
    assert later[10] == "line 13" and chosen() == ["test-13"]


def test_a_line_that_is_newer_than_the_map_counts_as_what_it_replaced(tree: Path) -> None:
    later = [*MEASURED[:4], "newer", "newer", *MEASURED[6:]]
    commit(tree, later)
    write(tree, [*later[:4], "changed", *later[5:]])
    assert chosen() == ["test-5", "test-6"]


def test_lines_that_came_or_went_count_for_their_neighbours_and_the_nearest_tests_come_first(tree: Path) -> None:
    write(tree, [*MEASURED[:7], "came", *MEASURED[7:15], *MEASURED[16:]])
    assert chosen() == ["test-7", "test-8", "test-16"]
    assert chosen(seconds=2.5) == ["test-7", "test-8"]


def test_a_file_that_got_another_name_is_known_by_its_former_one(tree: Path) -> None:
    subprocess.run(["git", "mv", "src/weft/a.py", "src/weft/b.py"], cwd=tree, check=True)
    subprocess.run(["git", "commit", "-qm", "x"], cwd=tree, check=True)
    write(tree, [*MEASURED[:2], "changed", *MEASURED[3:]], "b.py")
    assert chosen() == ["test-3"]


def test_what_git_prints_is_read() -> None:
    text = "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -3 +3,2 @@ def f\n-a\n+b\n+c\n@@ -9,0 +11 @@\n+d\n"
    assert read_changes(text) == [Change("x.py", "x.py", [Hunk(3, 1, 3, 2), Hunk(9, 0, 11, 1)])]
    assert list_touched([Hunk(3, 1, 3, 2), Hunk(9, 0, 11, 1)]) == {3, 9, 10}
    assert find_origin(12, [Hunk(3, 1, 3, 2), Hunk(9, 0, 11, 1)]) == {10}
