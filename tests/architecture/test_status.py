"""Tests that the docs name exist: of each point of the command line in docs/status.md, and every file that any page names."""

from __future__ import annotations

import ast
import re

from source import ROOT

POINTS = 28


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
