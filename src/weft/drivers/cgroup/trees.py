"""The mounted trees of control groups, in either version; groups as folders."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from weft.drivers.linux.mounts import Mount, read_mounts

CONTROLLERS = ("cpu", "memory", "pids")  # by which weft limits


class CgroupTree(msgspec.Struct, frozen=True):
    point: Path
    version: int
    controllers: frozenset[str]


class Trees(msgspec.Struct, frozen=True):
    """All mounted trees. Runtimes make groups in every one of them; weft only where ``points`` says."""

    all: tuple[CgroupTree, ...]
    version: int  # of the trees that limit
    points: dict[str, Path]  # controller → where its tree of that version is mounted
    unified: Path | None  # the tree of version 2, with or without controllers


def find_trees(mounts: Iterable[Mount], read_controllers: Callable[[Path], str]) -> Trees:
    """Pure. ``read_controllers``: the controllers of the version 2 tree at a mount point. Version 1 wins where both are mounted,
    for then it is the one that holds the controllers."""
    found: dict[str, CgroupTree] = {}
    for mount in mounts:
        if mount.kind in ("cgroup", "cgroup2") and mount.device not in found:
            point = Path(mount.point)
            names = mount.options if mount.kind == "cgroup" else read_controllers(point).split()
            found[mount.device] = CgroupTree(point, 1 if mount.kind == "cgroup" else 2, frozenset(names) - {"rw", "ro"})
    trees = tuple(found.values())
    version = 1 if any(tree.version == 1 and tree.controllers & {*CONTROLLERS} for tree in trees) else 2
    points = {name: tree.point for tree in trees if tree.version == version for name in sorted(tree.controllers)}
    return Trees(trees, version, points, next((tree.point for tree in trees if tree.version == 2), None))


def read_trees() -> Trees:
    """This machine's."""
    return find_trees(read_mounts(), lambda point: read(point / "cgroup.controllers"))


def walk(folders: Iterable[Path]) -> Iterator[Path]:
    """The groups below these and themselves, the deepest first."""
    for folder in folders:
        for path, _, _ in os.walk(folder, topdown=False):
            yield Path(path)


def list_processes(folders: Iterable[Path]) -> set[int]:
    """Those in these groups and below."""
    found: set[int] = set()
    for group in walk(folders):
        with contextlib.suppress(ValueError):
            found.update(map(int, read(group / "cgroup.procs").split()))
    return found - {0}


def remove(folders: Iterable[Path]) -> bool:
    """Remove these groups and those below that are empty. False: one isn't."""
    left = False
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # it has groups within, or processes
            for group in walk([folder]):
                with contextlib.suppress(OSError):
                    group.rmdir()
            left = left or folder.exists()
    return not left


def read(path: Path) -> str:
    """ "" for what isn't there, or can't be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
