"""A control group per guest: its limits on CPU, memory and processes, in whichever version the kernel has mounted. And one for
the memory of the node's agent, which guests and what else outlives it are not in.

Reads /proc/self/mountinfo once; writes below the controllers' mounts, under the node's own path. Where it may not
write, it says so in ``problem`` and guests run without limits rather than not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.drivers.cgroup.cgroupfs import count_oom_kills

CONTROLLERS = ("cpu", "memory", "pids")
PERIOD_MICROSECONDS = 100_000
MOST_PROCESSES = 512
AGENT, BESIDE = "agent", "beside"  # whose memory counts apart: the agent's, and of what it starts that isn't a guest
LEAST_AGENT_BYTES, AGENT_SHARE = 1 << 30, 32
REMOVAL_TRIES = 40
REMOVAL_PAUSE_SECONDS = 0.025


class Limits(msgspec.Struct, frozen=True):
    """``cpu`` in cores; at most ``memory_bytes`` of RAM, page cache included (which the kernel drops first)."""

    cpu: float
    memory_bytes: int


class CgroupMounts(msgspec.Struct, frozen=True):
    """Where each controller is: version 1 has a tree for each, version 2 one for all."""

    version: int
    folders: dict[str, Path]


def find_mounts(mountinfo: str, read_controllers: dict[str, str]) -> CgroupMounts:
    """Pure. ``mountinfo`` as the kernel writes it; ``read_controllers``: mount point of a version 2 tree → its
    controllers. Version 1 wins where both are mounted, because then it is the one that holds the controllers."""
    v1: dict[str, Path] = {}
    v2: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point, (kind, _, options) = left.split()[4], right.split()[:3]
        if kind == "cgroup":
            v1.update({name: Path(point) for name in options.split(",") if name in CONTROLLERS})
        elif kind == "cgroup2":
            names = read_controllers.get(point, "").split()
            v2.update({name: Path(point) for name in names if name in CONTROLLERS})
    return CgroupMounts(1, v1) if v1 else CgroupMounts(2, v2)


def plan_limits(version: int, limits: Limits) -> dict[str, str]:
    """Pure. The files to write, in order, and what to write."""
    quota = max(1000, int(limits.cpu * PERIOD_MICROSECONDS))
    if version == 2:
        return {
            "cpu.weight": plan_weight(2, limits.cpu),
            "cpu.max": f"{quota} {PERIOD_MICROSECONDS}",
            "memory.max": str(limits.memory_bytes),
            "pids.max": str(MOST_PROCESSES),
        }
    return {
        "cpu.shares": plan_weight(1, limits.cpu),
        "cpu.cfs_period_us": str(PERIOD_MICROSECONDS),
        "cpu.cfs_quota_us": str(quota),
        "memory.limit_in_bytes": str(limits.memory_bytes),
        "pids.max": str(MOST_PROCESSES),
    }


def plan_agent_memory(total_bytes: int) -> int:
    """Pure. How much an agent may take of a machine with so much: 1 GiB, which is far more than thousands of guests need, more on a
    large machine; never more than half of it."""
    return min(total_bytes // 2, max(LEAST_AGENT_BYTES, total_bytes // AGENT_SHARE))


def plan_weight(version: int, cpu: float) -> str:
    """Pure. How much a group counts where CPUs are short: as much as a busy process for each of its cores."""
    if version == 2:
        return str(min(10_000, max(1, round(100 * cpu))))
    return str(min(262_144, max(2, round(1024 * cpu))))


class Cgroups:
    """The node's groups; ``parent`` is its path below each mount. ``problem`` names what keeps it from working."""

    def __init__(self, parent: str) -> None:
        mountinfo = Path("/proc/self/mountinfo").read_text()
        self._mounts = find_mounts(mountinfo, _read_controllers(mountinfo))
        self._parent = parent.strip("/")
        missing = [name for name in CONTROLLERS if name not in self._mounts.folders]
        self.problem: str | None = None
        if missing:
            self.problem = f"cgroup controllers {', '.join(missing)} are not mounted: guests run without these limits"

    def check(self) -> None:
        """Find out whether groups can be made here, before the first guest needs one; sets ``problem`` if not."""
        self.create("check", Limits(1.0, 1 << 30))
        self.remove("check")

    def create(self, name: str, limits: Limits) -> list[Path]:
        """Make (or set anew) the group and its limits; the ``cgroup.procs`` files a process enters it by. Empty, and
        ``problem`` set, where weft may not."""
        folders = self._folders(name)
        try:
            for folder in folders:
                self._make(folder)
            self._limit(name, limits)
        except OSError as error:
            self.problem = f"cgroup {error.filename}: {error.strerror}: guests run without limits"
            self.remove(name)
            return self.leave_agent()
        return [folder / "cgroup.procs" for folder in folders]

    def enclose_agent(self, memory_bytes: int) -> str:
        """Put this process into a group of its own that takes so much memory; "" or why that can't be. What it starts is in there,
        too, until it enters another."""
        try:
            folder = self._make_memory(AGENT)
            file = "memory.max" if self._mounts.version == 2 else "memory.limit_in_bytes"
            _write_limit(folder / file, str(memory_bytes))
            _write_limit(folder / "cgroup.procs", str(os.getpid()))
        except OSError as error:
            return f"cgroup {error.filename}: {error.strerror}"
        return ""

    def leave_agent(self) -> list[Path]:
        """The ``cgroup.procs`` file by which a process that goes on without the agent leaves the agent's group; none where there
        can't be such groups."""
        try:
            return [self._make_memory(BESIDE) / "cgroup.procs"]
        except OSError:
            return []

    def _make_memory(self, name: str) -> Path:
        """A group that counts memory only."""
        if "memory" not in self._mounts.folders:
            raise OSError(errno.ENOENT, "the memory controller is not mounted", name)
        folder = self._mounts.folders["memory"] / self._parent / name
        self._make(folder)
        return folder

    def change(self, name: str, limits: Limits) -> None:
        """Set other limits on a group that is in use; one that isn't there, or that the kernel won't lower yet, stays."""
        with contextlib.suppress(OSError):
            self._limit(name, limits)

    def out_of_memory_kills(self, name: str) -> int:
        """How often the kernel has killed in this group because its memory limit was reached."""
        if "memory" not in self._mounts.folders:
            return 0
        file = "memory.events" if self._mounts.version == 2 else "memory.oom_control"
        try:
            text = (self._mounts.folders["memory"] / self._parent / name / file).read_text()
        except OSError:
            return 0
        return count_oom_kills(text)

    def remove(self, name: str) -> bool:
        """Remove the group. False: it still holds processes, and was left as it is."""
        for folder in self._folders(name):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not any(folder.exists() for folder in self._folders(name))

    def names(self, prefix: str) -> set[str]:
        """The groups whose name begins so."""
        tops = {point / self._parent for point in self._mounts.folders.values()}
        return {path.name for top in tops for path in top.glob(f"{prefix}*") if path.is_dir()}

    async def remove_when_empty(self, name: str, clock: Clock) -> None:
        """Remove the group of a process that has just ended: the kernel may take a moment to clear it away."""
        for _ in range(REMOVAL_TRIES):
            if self.remove(name):
                return
            await clock.sleep(REMOVAL_PAUSE_SECONDS)

    def _folders(self, name: str) -> list[Path]:
        return sorted({point / self._parent / name for point in self._mounts.folders.values()})

    def _make(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tops = set(self._mounts.folders.values())
        above = [path for path in folder.parents if path not in tops and tops & set(path.parents)]
        if self._mounts.version == 2:
            for path in reversed([*above, *tops]):  # a group limits only what its parent hands down
                held = (path / "cgroup.subtree_control").read_text().split()
                lacking = [f"+{name}" for name in self._mounts.folders if name not in held]
                if lacking:
                    (path / "cgroup.subtree_control").write_text(" ".join(lacking))
        if self._mounts.folders.get("cpu") in folder.parents:
            self._weigh(above)

    def _weigh(self, folders: list[Path]) -> None:
        """All guests together count for all cores; else a whole node would count like one process beside it."""
        version = self._mounts.version
        file, wanted = ("cpu.weight", "cpu.shares")[version == 1], plan_weight(version, os.cpu_count() or 1)
        for folder in folders:
            path = folder / file
            if path.exists() and path.read_text().strip() != wanted:
                _write_limit(path, wanted)

    def _limit(self, name: str, limits: Limits) -> None:
        for file, value in plan_limits(self._mounts.version, limits).items():
            controller = file.split(".")[0]
            if controller in self._mounts.folders:
                _write_limit(self._mounts.folders[controller] / self._parent / name / file, value)


def _write_limit(path: Path, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


def _read_controllers(mountinfo: str) -> dict[str, str]:
    found = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            point = left.split()[4]
            with contextlib.suppress(OSError):
                found[point] = Path(point, "cgroup.controllers").read_text()
    return found
