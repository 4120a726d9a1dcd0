"""The local nodes' places in the cgroup trees: version 1 (a mount per controller) and version 2 (one tree) alike.

Guests go into groups below `weft/<cluster>/<node>`; this file makes those parents and removes them with all that is
below. Writes only below `weft/`, and switches controllers on above it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from weft.drivers.cgroup.trees import CONTROLLERS, list_processes, read_trees, walk
from weft.launch.local.topology import Topology


def perform_make(topology: Topology) -> list[str]:
    """Make every node's group; gives back the controllers that guests can be limited with (sorted)."""
    usable: set[str] = set()
    for tree in read_trees().all:
        controllers = tree.controllers & {*CONTROLLERS}
        if not controllers:
            continue
        groups = [tree.point / topology.node_cgroup(node) for node in topology.nodes]
        try:
            for group in groups:
                group.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # a container may mount it read-only; guests then run without these limits, and up says so
        if tree.version == 2:
            usable.update(*(_switch_on(tree.point, group, controllers) for group in groups))
        else:
            usable.update(controllers)
    return sorted(usable & {*CONTROLLERS})


def find_groups(cgroup: str) -> list[Path]:
    """All groups at and below ``cgroup`` (relative, e.g. weft/ab12cd) in all trees, deepest first."""
    return list(walk(tree.point / cgroup for tree in read_trees().all))


def find_members(cgroup: str) -> set[int]:
    """Numbers of the processes that are in ``cgroup`` or below."""
    return list_processes(tree.point / cgroup for tree in read_trees().all)


def perform_thaw(cgroup: str) -> None:
    """Thaw the processes there: frozen ones, like idle instances of functions, don't end by a signal."""
    for group in find_groups(cgroup):
        for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            with contextlib.suppress(OSError):
                if (group / name).exists():
                    (group / name).write_text(word)


def perform_remove(cgroup: str) -> None:
    """Remove the groups at and below ``cgroup``, and the parent all clusters share when this was the last."""
    for group in find_groups(cgroup):
        group.rmdir()
    shared = Path(cgroup).parts[0]
    for group in find_groups(shared):
        if group.name == shared and not any(child.is_dir() for child in group.iterdir()):
            group.rmdir()


def _switch_on(tree: Path, group: Path, controllers: frozenset[str]) -> list[str]:
    """Hand controllers down to the groups that will be made in ``group``; gives back those that arrive there."""
    for parent in [*reversed(group.relative_to(tree).parents), group.relative_to(tree)]:
        for controller in controllers:
            with contextlib.suppress(OSError):  # a container may keep its own top group closed
                (tree / parent / "cgroup.subtree_control").write_text(f"+{controller}")
    return (group / "cgroup.subtree_control").read_text().split()
