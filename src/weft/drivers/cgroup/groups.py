"""Control groups of guests, containers and functions' instances, and the one of the node's agent, in either version.

Reads what is mounted once; writes below the controllers' mounts, under ``parent``, which is the node's own path. A group is
named within it, so one that a killed agent left behind is found by its name.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from weft.contracts.clock import Clock
from weft.drivers.cgroup.counters import GroupCounters
from weft.drivers.cgroup.limits import Limits, plan_limits, plan_weight
from weft.drivers.cgroup.trees import CONTROLLERS, Trees, list_processes, read_trees, remove
from weft.objects.errors import DriverFailed

FREEZER = "freezer"  # a controller of version 1; version 2 freezes without one
AGENT, BESIDE = (
    "agent",
    "beside",
)  # groups with memory limits of their own: the agent, and programs it starts that aren't guests
SHIMS = "shims"  # of containers' holders
REMOVAL_TRIES, REMOVAL_PAUSE_SECONDS = 150, 0.02
EMPTY_TRIES = 50  # for a group that nothing is in, but what the kernel still clears away


class ControlGroups(GroupCounters):
    """The groups below ``parent``. ``controllers``: in whose trees a group is made. ``nested``: a runtime makes groups within
    and removes them with their counters. ``problem`` names what keeps limits from working here, if something does."""

    def __init__(
        self,
        parent: str,
        *,
        controllers: tuple[str, ...] = CONTROLLERS,
        nested: bool = False,
        trees: Trees | None = None,
    ) -> None:
        super().__init__(parent, trees or read_trees(), nested=nested)
        self._used = controllers
        missing = [name for name in CONTROLLERS if name not in self._trees.points]
        self.problem = f"cgroup controllers {', '.join(missing)} are not mounted" if missing else None

    # Made and limited.

    def check(self, limits: Limits) -> str | None:
        """Find out whether such groups can be made here, before the first one is needed; sets and returns ``problem``."""
        if self.problem is None:
            name = f"check-{os.getpid()}"
            self.create_if_possible(name, limits)
            self.remove(name)
        return self.problem

    def create(self, name: str, limits: Limits) -> list[Path]:
        """Make (or update) the group and its limits, but for those of controllers that aren't mounted. Returns the
        ``cgroup.procs`` files by which a process enters it. Raises DriverFailed, and leaves nothing then."""
        try:
            return self._make(name, limits, self._used)
        except OSError as error:
            self.remove(name)
            raise DriverFailed(
                f"no control group for it: {error.filename}: {error.strerror}", details={"step": "cgroup"}
            ) from error

    def create_if_possible(self, name: str, limits: Limits) -> list[Path]:
        """Run ``create``; where weft may not, ``problem`` is set, and the files lead only out of the agent's own group."""
        try:
            return self.create(name, limits)
        except DriverFailed as failed:
            self.problem = failed.message
            return self.leave_agent()

    def change(self, name: str, limits: Limits) -> None:
        """Set other limits on a group in use; a group that is missing, or a limit that the kernel won't lower yet, stays."""
        with contextlib.suppress(OSError):
            self._limit(name, limits)

    def enclose_agent(self, memory_bytes: int) -> str:
        """Put this process into a group of its own with so much memory; returns "" or why that failed. What it starts is in
        there too, until it enters another group."""
        try:
            for procs in self._make(AGENT, Limits(memory_bytes=memory_bytes), ("memory",)):
                procs.write_text(str(os.getpid()))
                return ""
        except OSError as error:
            return f"cgroup {error.filename}: {error.strerror}"
        return "the memory controller is not mounted"

    def leave_agent(self) -> list[Path]:
        """The ``cgroup.procs`` file by which a process that outlives the agent leaves the agent's group; none where there can't
        be such groups."""
        with contextlib.suppress(OSError):
            return self._make(BESIDE, Limits(), ("memory",))
        return []

    # Who is in them.

    def names(self, prefix: str = "") -> set[str]:
        """The groups whose name begins so, whichever process made them."""
        found: set[str] = set()
        for folder in self._folders(""):
            with contextlib.suppress(OSError):
                found.update(path.name for path in folder.iterdir() if path.name.startswith(prefix) and path.is_dir())
        return found

    def processes(self, name: str) -> set[int]:
        """Processes in it and in groups within."""
        return list_processes(self._folders(name))

    def list_folders(self, name: str) -> list[Path]:
        """The group's folder in each tree in which weft makes it, whether or not it is there."""
        points = sorted({self._trees.points[one] for one in self._used if one in self._trees.points})
        return [point / self.parent / name for point in points]

    def freeze(self, name: str, frozen: bool) -> None:
        """Stop giving it CPU, or resume; where the kernel has no freezer, nothing happens."""
        if self.version == 2:
            path, word = self._file(name, "cgroup.freeze"), "1" if frozen else "0"
        else:
            path, word = self._file(name, "freezer.state"), "FROZEN" if frozen else "THAWED"
        if path is not None:
            with contextlib.suppress(OSError):
                path.write_text(word)

    def kill(self, name: str) -> None:
        """Kill everything in it now; it is frozen meanwhile, so a fork bomb can't outrun this."""
        kill = self._file(name, "cgroup.kill")
        if self.version == 2 and kill is not None:
            with contextlib.suppress(OSError):  # kernels before 5.14
                kill.write_text("1")
                return
        self.freeze(name, True)
        for pid in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.freeze(name, False)  # of version 1, what is frozen doesn't even die

    async def clear(self, name: str, clock: Clock) -> bool:
        """Kill everything in it, as often as it takes, and remove it. False: something is still there."""
        for _ in range(REMOVAL_TRIES):
            self.kill(name)
            if self.remove(name):
                return True
            await clock.sleep(REMOVAL_PAUSE_SECONDS)
        return False

    async def remove_when_empty(self, name: str, clock: Clock) -> None:
        """Remove the group of a process that has just ended: the kernel may take a moment to clear it away."""
        for _ in range(EMPTY_TRIES):
            if self.remove(name):
                return
            await clock.sleep(REMOVAL_PAUSE_SECONDS)

    def remove(self, name: str) -> bool:
        """Remove it, and the groups within. False: it isn't empty."""
        return remove(self._folders(name))

    def remove_parents(self) -> None:
        """Remove the node's own groups, as far as they are empty."""
        self.remove(SHIMS)
        for tree in self._trees.all:
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
        """The group's folders in all trees that exist: a runtime makes some in each."""
        return [tree.point / self.parent / name for tree in self._trees.all]

    def _make(self, name: str, limits: Limits, controllers: tuple[str, ...]) -> list[Path]:
        points = sorted({self._trees.points[one] for one in controllers if one in self._trees.points})
        for point in points:
            folder = point / self.parent / name
            folder.mkdir(parents=True, exist_ok=True)
            if self._nested:  # a runtime that clears up takes empty groups above its own along
                (folder / "kept").mkdir(exist_ok=True)
            above = [path for path in reversed(folder.parents) if path == point or point in path.parents]
            if self.version == 2 and limits != Limits():
                _hand_down(above, {*CONTROLLERS} & {*self._trees.points})
            if limits.weight is not None and point == self._trees.points.get("cpu"):
                self._weigh(above[1:])
        self._limit(name, limits)
        return [point / self.parent / name / "cgroup.procs" for point in points]

    def _weigh(self, folders: list[Path]) -> None:
        """Give all guests together the weight of all cores; else a whole node would count like one process beside it."""
        file = "cpu.shares" if self.version == 1 else "cpu.weight"
        wanted = plan_weight(self.version, os.cpu_count() or 1)
        for folder in folders:
            path = folder / file
            if path.exists() and path.read_text().strip() != wanted:
                path.write_text(wanted)

    def _limit(self, name: str, limits: Limits) -> None:
        for file, value, needed in plan_limits(self.version, limits):
            path = self._file(name, file)
            if path is not None and file.split(".")[0] in self._trees.points and (needed or path.exists()):
                path.write_text(value)


def _hand_down(above: Iterable[Path], controllers: set[str]) -> None:
    """A group of version 2 limits only by what those above it hand down."""
    for folder in above:
        control = folder / "cgroup.subtree_control"
        lacking = controllers - set(control.read_text().split())
        if lacking:
            control.write_text(" ".join(f"+{name}" for name in sorted(lacking)))


def make_shims(groups: ControlGroups) -> list[Path]:
    """The files by which a process enters the group of containers' holders; none where weft may not."""
    with contextlib.suppress(DriverFailed):
        return groups.create(SHIMS, Limits())
    return []
