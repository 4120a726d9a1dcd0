"""The control groups of instances: limits, freezing, and killing all of one at once, in whichever version the kernel has.

``parent`` is the node's path below each mount; an instance's group is ``parent/functions/ID``, so one that a killed agent left
behind is found by its name.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.drivers.cgroup import cgroupfs
from weft.objects.errors import DriverFailed

FOLDER = "functions"
PERIOD_MICROSECONDS = 100_000
_USED = ("cpu", "memory", "pids", "freezer")


class InstanceLimits(msgspec.Struct, frozen=True):
    """``cpu`` in cores; ``memory`` in bytes, what lies in its /tmp included; ``pids`` processes and threads."""

    cpu: float
    memory: int
    pids: int


def find_folders(mountinfo: str) -> tuple[int, dict[str, Path]]:
    """Pure. The version that holds the memory controller, and where each controller is; "" is version 2's one tree."""
    v1: dict[str, Path] = {}
    v2: list[Path] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind = right.split()[0]
        point = Path(left.split()[4])
        if kind == "cgroup":
            for name in right.split()[2].split(","):
                if name in _USED:
                    v1.setdefault(name, point)
        elif kind == "cgroup2":
            v2.append(point)
    if "memory" in v1:
        return 1, v1
    return 2, {"": v2[0]} if v2 else {}


def find_trees(mountinfo: str) -> list[Path]:
    """Pure. Where any tree is mounted, each point once: runtimes make groups in all of them."""
    lines = [line.partition(" - ") for line in mountinfo.splitlines()]
    points = [Path(left.split()[4]) for left, _, right in lines if right.split()[0] in ("cgroup", "cgroup2")]
    return list(dict.fromkeys(points))


def plan_limits(version: int, limits: InstanceLimits) -> list[tuple[str, str, bool]]:
    """Pure. File, what to write, and whether a kernel without it is refused, in order."""
    quota = str(max(1000, int(limits.cpu * PERIOD_MICROSECONDS)))
    if version == 2:
        return [
            ("cpu.max", f"{quota} {PERIOD_MICROSECONDS}", True),
            ("memory.max", str(limits.memory), True),
            ("memory.swap.max", "0", False),
            ("memory.oom.group", "1", False),
            ("pids.max", str(limits.pids), True),
        ]
    return [
        ("cpu.cfs_period_us", str(PERIOD_MICROSECONDS), True),
        ("cpu.cfs_quota_us", quota, True),
        ("memory.limit_in_bytes", str(limits.memory), True),
        ("memory.memsw.limit_in_bytes", str(limits.memory), False),
        ("pids.max", str(limits.pids), True),
    ]


class InstanceGroups:
    """``nested``: a runtime makes groups within, and takes them away with their counters."""

    def __init__(self, parent: str, *, nested: bool = False) -> None:
        self._nested = nested
        self.path = f"{parent.strip('/')}/{FOLDER}"
        mountinfo = Path("/proc/self/mountinfo").read_text()
        self._version, self._mounts = find_folders(mountinfo)
        self._trees = find_trees(mountinfo)

    def problem(self) -> str:
        """What keeps limits from working here, for people; "" if nothing does."""
        if not self._mounts or (self._version == 1 and {"cpu", "memory", "pids"} - set(self._mounts)):
            return "control groups for CPU, memory and processes are not mounted"
        name = f"check-{os.getpid()}"
        try:
            self.create(name, InstanceLimits(1.0, 64 << 20, 16))
        except DriverFailed as failed:
            return failed.message
        finally:
            self.remove(name)
        return ""

    def create(self, name: str, limits: InstanceLimits) -> list[str]:
        """Make it, with its limits; the files by which a process enters it. Raises DriverFailed."""
        try:
            folders = self._folders(name)
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
                if self._nested:  # a runtime that clears up takes empty groups above its own along
                    (folder / "kept").mkdir(exist_ok=True)
            if self._version == 2:
                self._hand_down(folders[0])
            for file, value, needed in plan_limits(self._version, limits):
                path = self._file(name, file)
                if path is not None and (needed or path.exists()):
                    path.write_text(value)
            return [str(folder / "cgroup.procs") for folder in folders]
        except OSError as error:
            self.remove(name)
            raise DriverFailed(
                f"no control group for it: {error.filename}: {error.strerror}", details={"step": "cgroup"}
            ) from error

    def freeze(self, name: str, frozen: bool) -> None:
        """Give it no more CPU, or again; where the kernel has no freezer, nothing happens."""
        if self._version == 2:
            path, word = self._file(name, "cgroup.freeze"), "1" if frozen else "0"
        else:
            path, word = self._file(name, "freezer.state"), "FROZEN" if frozen else "THAWED"
        if path is not None:
            with contextlib.suppress(OSError):
                path.write_text(word)

    def processes(self, name: str) -> set[int]:
        return cgroupfs.list_processes(self._all(name))

    def kill(self, name: str) -> None:
        """All that is in it; what forks without end stands still meanwhile."""
        if self._version == 2:
            with contextlib.suppress(OSError):
                (self._folders(name)[0] / "cgroup.kill").write_text("1")
                return
        self.freeze(name, True)
        cgroupfs.end_processes(self._all(name))
        self.freeze(name, False)

    async def clear(self, name: str, clock: Clock) -> bool:
        """Kill all that is in it, as often as it takes, and remove it. False: something is still there."""
        return await cgroupfs.clear(lambda: self.kill(name), lambda: self.remove(name), clock)

    def remove(self, name: str) -> bool:
        """False: it isn't empty."""
        return cgroupfs.remove(self._all(name))

    def names(self) -> set[str]:
        """Of all groups that are there, whoever made them."""
        found: set[str] = set()
        for point in self._trees:
            with contextlib.suppress(OSError):
                found.update(path.name for path in (point / self.path).iterdir() if path.is_dir())
        return found

    def out_of_memory_kills(self, name: str) -> int:
        path = self._file(name, "memory.events" if self._version == 2 else "memory.oom_control")
        found = cgroupfs.count_oom_kills(_read(path))
        if found == 0 and self._nested and self._version == 1:  # told within, which is gone by now: was the limit met?
            limit = _read(self._file(name, "memory.limit_in_bytes")).strip()
            return int(limit.isdigit() and self.most_memory(name) >= int(limit))
        return found

    def most_memory(self, name: str) -> int:
        """Bytes; 0 where the kernel doesn't tell."""
        text = _read(self._file(name, "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"))
        return int(text) if text.strip().isdigit() else 0

    def _points(self) -> list[Path]:
        return sorted(set(self._mounts.values()))

    def _folders(self, name: str) -> list[Path]:
        return [point / self.path / name for point in self._points()]

    def _all(self, name: str) -> list[Path]:
        """Its groups in all trees that there are; a runtime makes some in them."""
        return [point / self.path / name for point in self._trees]

    def _file(self, name: str, file: str) -> Path | None:
        point = self._mounts.get("" if self._version == 2 else file.split(".")[0])
        return point / self.path / name / file if point is not None else None

    def _hand_down(self, folder: Path) -> None:
        """A group limits only what its parents hand down."""
        (top,) = self._points()
        above = [path for path in folder.parents if path == top or top in path.parents]
        for path in reversed(above):
            control = path / "cgroup.subtree_control"
            lacking = {"cpu", "memory", "pids"} - set(control.read_text().split())
            if lacking:
                control.write_text(" ".join(f"+{name}" for name in sorted(lacking)))


def _read(path: Path | None) -> str:
    try:
        return path.read_text() if path is not None else ""
    except OSError:
        return ""
