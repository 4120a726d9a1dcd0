"""The local nodes' places in the cgroup trees: version 1 (a mount per controller) and version 2 (one tree) alike.

Guests go into groups below `weft/<cluster>/<node>`; this file makes those parents and removes them with all that is
below. Reads /proc/self/mounts; writes only below `weft/`, and switches controllers on above it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from weft.launch.local.topology import Topology

CONTROLLERS = ("cpu", "memory", "pids")


class Tree(msgspec.Struct, frozen=True):
    """One mounted cgroup tree and those of CONTROLLERS it has; ``unified`` is version 2."""

    path: str
    unified: bool
    controllers: tuple[str, ...]


def read_trees(mounts: str) -> list[Tree]:
    """The version 1 trees in the text of /proc/mounts that carry a controller weft uses, and every version 2 tree."""
    trees = []
    for line in mounts.splitlines():
        _, path, kind, options = line.split()[:4]
        if kind == "cgroup":
            controllers = tuple(name for name in options.split(",") if name in CONTROLLERS)
            if controllers:
                trees.append(Tree(path, False, controllers))
        elif kind == "cgroup2":
            trees.append(Tree(path, True, ()))
    return trees


def find_points(mounts: str) -> list[str]:
    """Where any cgroup tree is mounted, each once: containers' runtimes make groups in all of them."""
    kinds = [line.split()[1:3] for line in mounts.splitlines()]
    return list(dict.fromkeys(path for path, kind in kinds if kind in ("cgroup", "cgroup2")))


def inspect_trees() -> list[Tree]:
    """This machine's trees, each with the controllers that weft can use in it; version 2 without any is left out."""
    trees = []
    for tree in read_trees(Path("/proc/self/mounts").read_text()):
        if tree.unified:
            offered = (Path(tree.path) / "cgroup.controllers").read_text().split()
            tree = Tree(tree.path, True, tuple(name for name in offered if name in CONTROLLERS))
        if tree.controllers:
            trees.append(tree)
    return trees


def perform_make(topology: Topology) -> list[str]:
    """Make every node's group; gives back the controllers that guests can be limited with (sorted)."""
    usable: set[str] = set()
    for tree in inspect_trees():
        groups = [Path(tree.path) / topology.node_cgroup(node) for node in topology.nodes]
        try:
            for group in groups:
                group.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue  # a container may mount it read-only; guests then run without these limits, and up says so
        if tree.unified:
            usable.update(*(_switch_on(Path(tree.path), group, tree.controllers) for group in groups))
        else:
            usable.update(tree.controllers)
    return sorted(usable & set(CONTROLLERS))


def find_groups(cgroup: str) -> list[Path]:
    """All groups at and below ``cgroup`` (relative, e.g. weft/ab12cd) in all trees, deepest first."""
    found: list[Path] = []
    for point in find_points(Path("/proc/self/mounts").read_text()):
        found += _walk(Path(point) / cgroup)
    return found


def find_members(cgroup: str) -> set[int]:
    """Numbers of the processes that are in ``cgroup`` or below."""
    members: set[int] = set()
    for group in find_groups(cgroup):
        members |= {int(word) for word in (group / "cgroup.procs").read_text().split()}
    return members


def perform_thaw(cgroup: str) -> None:
    """What is frozen there, as idle instances of functions are, doesn't end by a signal: let it run."""
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


def _walk(group: Path) -> Iterator[Path]:
    if group.is_dir():
        for child in group.iterdir():
            if child.is_dir():
                yield from _walk(child)
        yield group


def _switch_on(tree: Path, group: Path, controllers: tuple[str, ...]) -> list[str]:
    """Hand controllers down to the groups that will be made in ``group``; gives back those that arrive there."""
    for parent in [*reversed(group.relative_to(tree).parents), group.relative_to(tree)]:
        for controller in controllers:
            with contextlib.suppress(OSError):  # a container may keep its own top group closed
                (tree / parent / "cgroup.subtree_control").write_text(f"+{controller}")
    return (group / "cgroup.subtree_control").read_text().split()
