"""The path is the map, *room / subject / role*: no folder that has to be searched, and inside a room imports that go one way."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from source import FILES, SOURCE, nodes_of

MOST_FILES = 15
REGISTRIES = ("kinds", "cli/verbs", "scheduler/policies")  # one file per entry
ROOMS = sorted(path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__")
MODULES = {"weft." + ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in FILES}


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


@pytest.mark.parametrize("room", ROOMS)
def test_subjects_of_a_room_import_each_other_one_way(room: str) -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        here = path.relative_to(SOURCE).parts
        if here[0] != room or len(here) < 3:  # what lies in the room itself wires it, or is what all of it stands on
            continue
        for module in find_imports(path):
            there = module.split(".")[1:]
            if there[0] == room and len(there) > 2 and there[1] != here[1]:
                graph.setdefault(here[1], set()).add(there[1])
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"{room}: {' → '.join(reversed(error.args[1]))}: each needs the next one")
