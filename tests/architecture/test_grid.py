"""The path is the map, *room / subject / role*: no folder that has to be searched, and inside a room imports that go one way."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from source import FILES, SOURCE, nodes_of

MOST_FILES = 15
REGISTRIES = ("kinds", "cli/verbs", "scheduler/policies")  # one file per entry


def module_of(path: Path) -> str:
    return "weft." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)


MODULES = {module_of(path) for path in FILES}


def find_imports(path: Path) -> set[str]:
    """The modules of weft that a file imports, wherever in it."""
    found: set[str] = set()
    for node in nodes_of(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found & MODULES


def test_no_folder_holds_more_than_can_be_seen_at_once() -> None:
    count: dict[str, int] = {}
    for path in FILES:
        if path.name != "__init__.py":
            folder = path.parent.relative_to(SOURCE).as_posix()
            count[folder] = count.get(folder, 0) + 1
    long = {folder: files for folder, files in count.items() if files > MOST_FILES and folder not in REGISTRIES}
    assert not long, f"more than {MOST_FILES} files: give them subjects"


FOLDERS = sorted({path.parent for path in FILES if path.parent != SOURCE})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(SOURCE).as_posix())
def test_subjects_import_each_other_one_way(folder: Path) -> None:
    depth = len(folder.relative_to(SOURCE).parts)
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if (
            not path.is_relative_to(folder) or path.parent == folder
        ):  # what lies in the folder wires it, or is its floor
            continue
        here = path.relative_to(SOURCE).parts
        for module in find_imports(path):
            there = module.split(".")[1:]
            if there[:depth] == list(here[:depth]) and len(there) > depth + 1 and there[depth] != here[depth]:
                graph.setdefault(here[depth], set()).add(there[depth])
    refuse_circles(graph)


def test_no_file_needs_itself_by_way_of_others() -> None:
    refuse_circles({module_of(path): find_imports(path) - {module_of(path)} for path in FILES})


def refuse_circles(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"{' → '.join(reversed(error.args[1]))}: each needs the next one")
