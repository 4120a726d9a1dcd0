"""The control groups of containers, which the runtime makes: read, emptied and removed, in all trees that are mounted.

``parent`` is the node's path below each mount; a container's group is ``parent/ID``, those who hold them sit in ``parent/shims``.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestStats
from weft.drivers.cgroup import cgroupfs

SHIMS = "shims"


class Tree(msgspec.Struct, frozen=True):
    point: Path
    version: int
    controllers: frozenset[str]


def find_trees(mountinfo: str) -> list[Tree]:
    """Pure. Every tree once, as the kernel tells of them."""
    found: dict[str, Tree] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split()[:3]
        point = left.split()[4]
        if kind == "cgroup" and options not in found:
            names = right.split()[2].split(",")
            found[options] = Tree(Path(point), 1, frozenset(names))
        elif kind == "cgroup2":
            found.setdefault("cgroup2", Tree(Path(point), 2, frozenset()))
    return list(found.values())


def count_io(text: str, version: int) -> tuple[int, int]:
    """Pure. Bytes read and written, from io.stat (version 2) or blkio.throttle.io_service_bytes."""
    read = written = 0
    for line in text.splitlines():
        words = line.split()
        if version == 2:
            counts = dict(word.split("=", 1) for word in words[1:] if "=" in word)
            read, written = read + int(counts.get("rbytes", 0)), written + int(counts.get("wbytes", 0))
        elif len(words) == 3 and words[1] == "Read":
            read += int(words[2])
        elif len(words) == 3 and words[1] == "Write":
            written += int(words[2])
    return read, written


class Groups:
    def __init__(self, parent: str) -> None:
        self.parent = parent.strip("/")
        self._trees = find_trees(Path("/proc/self/mountinfo").read_text())
        one = [tree for tree in self._trees if tree.version == 2]
        self.version = 1 if any("memory" in tree.controllers for tree in self._trees) else 2
        self._unified = one[0].point if one else None

    def path(self, name: str) -> str:
        """Below each controller's mount."""
        return f"{self.parent}/{name}"

    def make_shims(self) -> list[str]:
        """The files by which a process enters the group of those who hold containers; empty where weft may not."""
        found = []
        for folder in self._folders(SHIMS):
            if self.version == 1 and folder.is_relative_to(self._unified or "/nowhere"):
                continue
            if not self._holds_limits(folder):
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError:
                continue
            found.append(str(folder / "cgroup.procs"))
        return found

    def out_of_memory_kills(self, name: str) -> int:
        file = "memory.events" if self.version == 2 else "memory.oom_control"
        return cgroupfs.count_oom_kills(self._read("memory", name, file))

    def limits_swap(self) -> bool:
        """Whether the kernel limits memory and swap together, or (version 2) each by itself."""
        if self.version == 2:
            return True
        points = [tree.point for tree in self._trees if "memory" in tree.controllers]
        return any((point / "memory.memsw.limit_in_bytes").exists() for point in points)

    def stats(self, name: str, *, disks: bool) -> GuestStats:
        """Zeros for what the node's trees don't tell."""
        if self.version == 2:
            cpu = dict(line.split(" ", 1) for line in self._read("cpu", name, "cpu.stat").splitlines())
            seconds = int(cpu.get("usage_usec", "0")) / 1e6
            memory = self._read("memory", name, "memory.current")
            file = "io.stat"
        else:
            seconds = int(self._read("cpuacct", name, "cpuacct.usage") or "0") / 1e9
            memory = self._read("memory", name, "memory.usage_in_bytes")
            file = "blkio.throttle.io_service_bytes"
        read, written = count_io(self._read("blkio", name, file), self.version) if disks else (0, 0)
        return GuestStats(seconds, int(memory or "0"), read, written)

    def processes(self, name: str) -> set[int]:
        return cgroupfs.list_processes(self._folders(name))

    def kill(self, name: str) -> None:
        """All that is in it now."""
        for folder in self._folders(name):
            with contextlib.suppress(OSError):
                (folder / "freezer.state").write_text("THAWED")  # what is frozen doesn't even die
        cgroupfs.end_processes(self._folders(name))

    async def clear(self, name: str, clock: Clock) -> bool:
        """Kill all that is in the group, as often as it takes, and remove it. False: something is still there."""
        return await cgroupfs.clear(lambda: self.kill(name), lambda: self.remove(name), clock)

    def remove(self, name: str) -> bool:
        """Remove a group that is empty. False: it isn't."""
        return cgroupfs.remove(self._folders(name))

    def remove_parents(self) -> None:
        """The node's own groups, as far as nothing is in them."""
        self.remove(SHIMS)
        for tree in self._trees:
            folder = tree.point / self.parent
            while folder != tree.point:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    break
                folder = folder.parent

    def _folders(self, name: str) -> list[Path]:
        return [tree.point / self.parent / name for tree in self._trees]

    def _holds_limits(self, folder: Path) -> bool:
        if self.version == 2:
            return True
        trees = [tree for tree in self._trees if folder.is_relative_to(tree.point)]
        return any({"cpu", "memory", "pids"} & tree.controllers for tree in trees)

    def _read(self, controller: str, name: str, file: str) -> str:
        for tree in self._trees:
            if controller in tree.controllers or (self.version == 2 and tree.version == 2):
                with contextlib.suppress(OSError):
                    return (tree.point / self.parent / name / file).read_text()
        return ""
