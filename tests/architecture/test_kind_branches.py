"""What a kind is like stands in its record. No other room asks an object's kind by name, so no branch forgets a further kind."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from source import FILES, SOURCE, nodes_of

from weft.kinds.registry import BY_NAME

ROOMS = ("kinds", "drivers")  # that may know kinds, and what runs them, by name
# Not an object's kind to branch on: what woke a controller, among the kinds that it subscribed to by name; and who calls.
OTHERS = ("change.kind", "actor.kind")
# How many such branches a file still has. The counts only fall.
BRANCHES = {
    # One queue for objects of two kinds, each with a plan of its own.
    "controllers/conversion/controller": 2,
    "controllers/network/addresses": 1,
    "controllers/network/security_groups": 1,
    "gateway/function/readiness": 1,
    "gateway/function/service": 1,
    "scheduler/allocation/preempt": 1,
    "scheduler/questions": 1,
    # Words of a spec that begin with a kind.
    "scheduler/node/facts": 1,
    "scheduler/workload/request": 2,
}
# Who asks whether an allocation is a container's, and how often.
CONTAINERS = {
    "agent/workload/container": 1,
}


def place_of(path: Path) -> str:
    return "/".join(path.relative_to(SOURCE).with_suffix("").parts)


def find_strings(node: ast.expr) -> set[object]:
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return {part.value for part in parts if isinstance(part, ast.Constant)}


def find_branches(path: Path) -> Iterator[int]:
    """The lines that compare something called kind with the name of one."""
    for node in nodes_of(path, ast.Compare):
        sides = [node.left, *node.comparators]
        asked = [ast.unparse(side) for side in sides if isinstance(side, ast.Name | ast.Attribute)]
        names = {name for side in sides for name in find_strings(side)} & set(BY_NAME)
        is_kind = any(
            text.removesuffix(".name").rpartition(".")[2] == "kind" and not text.endswith(OTHERS) for text in asked
        )
        if is_kind and (names or any(text in {f"{name.upper()}.name" for name in BY_NAME} for text in asked)):
            yield node.lineno


def find_containers(path: Path) -> Iterator[int]:
    for node in nodes_of(path, ast.Compare):
        if isinstance(node.ops[0], ast.Is | ast.IsNot) and ast.unparse(node.left).endswith("spec.container"):
            yield node.lineno


def outside() -> Iterator[Path]:
    return (path for path in FILES if path.relative_to(SOURCE).parts[0] not in ROOMS)


def test_no_room_but_kinds_and_drivers_asks_for_a_kind_by_name() -> None:
    found = Counter(place_of(path) for path in outside() for _ in find_branches(path))
    more = {place: count for place, count in found.items() if count > BRANCHES.get(place, 0)}
    assert not more, "declare in the Kind record what differs"


def test_no_room_but_kinds_and_drivers_asks_whether_an_allocation_is_a_containers() -> None:
    found = Counter(place_of(path) for path in outside() for _ in find_containers(path))
    more = {place: count for place, count in found.items() if count > CONTAINERS.get(place, 0)}
    assert not more, "declare it in the Workload record"


def test_a_branch_is_found_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "branches.py"
    path.write_text(
        'a = kind == "vm"\nb = target.kind.name != "node"\nc = ref.kind in ("vm", "container")\nd = kind is NODE.name\n'
        'e = change.kind == call.actor.kind == "node"\nf = sock.kind == "stream"\ng = name == "vm"\n'
        "h = spec.container is not None\n"
    )
    assert list(find_branches(path)) == [1, 2, 3, 4]
    assert list(find_containers(path)) == [8]
