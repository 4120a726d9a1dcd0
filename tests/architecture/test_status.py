"""Tests that the docs name exist: of each point of the command line in docs/status.md, and every file that any page names."""

from __future__ import annotations

import ast
import re

from source import ROOT

from weft.kinds.fields.alert.defaults import list_default_rules

POINTS = 28
FEATURES = {"A": 8, "B": 9, "C": 7, "D": 7, "E": 9, "F": 8, "G": 7, "H": 5, "I": 6}  # how many the feature book has


def test_each_point_of_the_command_line_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "status.md").read_text()
    section = page.partition(f"## The command line: {POINTS} points\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] != "|--"]
    points = {row[0]: row for row in rows if row[0].isdigit()}
    assert sorted(points, key=int) == [str(n + 1) for n in range(POINTS)]
    for number, (_, _, holds, tests) in points.items():
        assert re.match("yes|part: .|no: .", holds), f"point {number}: yes, or what is missing"
        named = re.findall(r"`([^`:]+)::([^`]+)`", tests)
        assert named, f"point {number} names no test"
        for file, name in named:
            nodes = ast.walk(ast.parse((ROOT / file).read_text()))
            functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert name in functions and name.startswith("test_"), f"point {number}: {file} has no {name}"


def read_features() -> dict[str, list[list[str]]]:
    """The rows of the tables by feature, by title."""
    page = (ROOT / "docs" / "status.md").read_text()
    sections = re.findall(r"^## [A-I]\. (.*)\n\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = {title: [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()[2:]] for title, table in sections}
    return {title: [[cell.strip() for cell in row] for row in of_title] for title, of_title in rows.items()}


def test_each_feature_has_one_row_that_says_what_is_missing_or_names_its_test() -> None:
    rows = [row for of_title in read_features().values() for row in of_title]
    assert [row[0] for row in rows] == [f"{letter}{n + 1}" for letter, many in FEATURES.items() for n in range(many)]
    wrong = [row[0] for row in rows if row[2] not in ("yes", "part", "no") or bool(row[3]) is (row[2] == "yes")]
    assert not wrong, "yes, or part or no with what is missing"
    assert not [row[0] for row in rows if (row[4] == "") is not (row[2] == "no")]


def test_the_facts_in_detail_stand_in_the_order_of_the_feature_book() -> None:
    detail = (ROOT / "docs" / "status.md").read_text().partition("\n## In detail\n")[2].partition("\n## ")[0]
    tables = [re.findall(r"^\| ([A-J]\d?(?:[,–].*?)?) \|", part, re.MULTILINE) for part in detail.split("\n### ")[1:]]
    assert len(tables) == len(FEATURES)
    for own, cells in zip(FEATURES, tables, strict=True):  # a section's own features come first in a row, then others
        ids = [[(one[0] != own, one) for one in re.split("[,–] ?", cell)] for cell in cells]
        assert ids and all(row == sorted(row) and row[0][0] is False for row in ids), own
        assert ids == sorted(ids), own


def test_the_readme_says_what_is_missing_as_the_status_does() -> None:
    lines = []
    for title, rows in read_features().items():
        missing = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", row[3]) for row in rows if row[3]]
        lines += [f"- **{title}**: {'; '.join(missing)}."] if missing else []
    section = (ROOT / "README.md").read_text().partition("## What it doesn't do yet\n")[2].partition("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("- ")] == lines


def test_the_list_of_all_pages_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [path for room in ("guide", "reference", "recipes") for path in (ROOT / "docs" / room).glob("*.md")]
    assert not [path.name for path in pages if f"({path.parent.name}/{path.name})" not in index]


def test_what_the_pages_count_and_teach_is_so() -> None:
    pages = {path: path.read_text() for path in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]}
    rules = f"{len(list_default_rules())} rules"
    assert f"A new fabric has {rules}," in pages[ROOT / "docs" / "guide" / "alerts.md"]
    assert f"{rules} of a fabric" in pages[ROOT / "docs" / "status.md"]
    assert not [path.name for path, text in pages.items() if re.search(r"pip install '?weft\b", text)], "not published"


def test_every_path_that_the_status_names_exists() -> None:
    page = (ROOT / "docs" / "status.md").read_text()
    named = {path for path in re.findall(r"`([^`\s:]+)", page) if "/" in path or path.startswith("test_")}
    rooted = {path for path in named if re.match(r"(benchmarks|docs|examples|src|tests|tools)/|test_", path)}
    assert len(rooted) > 100
    assert not sorted(path for path in rooted if not any(ROOT.glob(path.rstrip("/"))))


def test_a_fact_of_the_status_and_a_line_of_the_changelog_are_short() -> None:
    rows = [line for line in (ROOT / "docs" / "status.md").read_text().splitlines() if line.startswith("| ")]
    cells = [cell.strip() for row in rows for cell in re.split(r"(?<!\\)\|", row.strip("|"))]
    assert not [cell[:80] for cell in cells if len(cell) > 420], "split it: one fact a row"
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert not [line[:80] for line in lines if len(line) > 200]
    assert not [line[:80] for line in lines if re.search(r"\(?before[,:] ", line)], "say what it does now"


def test_every_file_of_tests_that_a_page_names_exists() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    named = {(page.name, path) for page in pages for path in re.findall(r"tests/[\w/]+\.py", page.read_text())}
    assert len(named) > 100
    gone = sorted(f"{page}: {path}" for page, path in named if not (ROOT / path).is_file())
    assert not gone
