"""Instances as sandboxed processes: own user, mounts, processes, network and control group, no rights, few system calls.

Writes control groups below the node's; mounts only in namespaces of its own, so that nothing is left on disk. An instance
doesn't outlive the agent that serves it: what a killed one left behind is ended by ``recover``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from weft.contracts.clock import Clock
from weft.contracts.driver.container import ContainerPlan, ContainerProcess, User
from weft.contracts.driver.function import Isolation, Recipe, Roots
from weft.contracts.driver.host import Host
from weft.drivers.function.instances import ConfinedProgram, OwnProcesses, Walls
from weft.drivers.function.mounts import ROOT
from weft.drivers.function.plan import plan_scratch
from weft.drivers.function.process import sandbox
from weft.drivers.function.process.sandbox import INSIDE_USER, choose_user, plan_entry, plan_sandbox
from weft.drivers.linux.seccomp import read_profile, translate_seccomp
from weft.drivers.linux.seccomp_bpf import compile_filter, tighten

TRIAL_SECONDS = 20.0
NAME = "p-"  # how its groups' names begin


class ProcessWalls:
    """bubblewrap's."""

    mapping: int | None = None

    def __init__(self, name: str, groups: Sequence[Path], filter: bytes) -> None:
        self.hidden: list[str] = []
        self._user, self._groups, self._filter = choose_user(name), [str(group) for group in groups], filter

    def enter(self, place: Path, plan: ContainerPlan) -> ConfinedProgram:
        descriptors = [_write_memory("filter", self._filter)]
        words = plan_sandbox(plan, str(place / ROOT), descriptors[0])
        descriptors.append(_write_memory("words", b"".join(os.fsencode(word) + b"\0" for word in words)))
        entry = plan_entry(self._groups, self._user, descriptors[1], plan.process.argv)
        return ConfinedProgram(entry, descriptors, sandbox.PATH)

    def let_go(self) -> None:
        """Its user is its own by its name."""


class ProcessInstances(OwnProcesses):
    """An InstanceDriver for the isolation ``process``."""

    isolation: Isolation = "process"

    def __init__(self, host: Host, clock: Clock | None = None) -> None:
        super().__init__(host, clock, NAME)
        self._filter = b""

    async def _build(self, name: str, groups: list[Path], *, has_image: bool) -> Walls:
        return ProcessWalls(name, groups, self._filter)

    def _choose_user(self, recipe: Recipe, roots: Roots) -> User:
        return User(INSIDE_USER, INSIDE_USER)

    async def _probe(self) -> str:
        if shutil.which(sandbox.PROGRAM) is None:
            return f"{sandbox.PROGRAM} is not installed: {sandbox.INSTALL_HINT}"
        problem = await self._open_place()
        if closed := find_closed(self._place):
            return f"users of instances can't enter {closed}: set --run-dir of the agent to a folder outside it"
        if problem:
            return problem
        self._filter = await asyncio.to_thread(make_filter)
        return await self._try()

    async def _try(self) -> str:
        """Run a program of the node's own in a sandbox; returns what failed, or nothing."""
        plan = ContainerPlan(
            id=f"probe-{os.getpid()}", uid="", name="probe", incarnation=0, layers=["/"], cpu=1.0, memory_bytes=128 << 20,
            process=ContainerProcess(["/bin/true"]), pids=32, mounts=[plan_scratch(0)], hostname="probe",
        )  # fmt: skip
        started = await self._start(plan, "a trial")
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                ended = await started.wait()
            if ended.code == 0:
                return ""
            printed = await asyncio.to_thread(_read_all, started.output)
            return f"sandboxes don't work on this node: {printed or ended}"
        except TimeoutError:
            return f"a sandbox didn't end within {TRIAL_SECONDS:.0f} s"
        finally:
            await started.stop()


def make_filter() -> bytes:
    """Raises DriverFailed."""
    return compile_filter(tighten(translate_seccomp(read_profile(), platform.machine(), ())))


def find_closed(folder: Path) -> Path | None:
    """The first folder on the way to ``folder`` that not everybody may pass through."""
    for path in reversed([folder, *folder.parents]):
        if not path.stat().st_mode & 0o001:
            return path
    return None


def _write_memory(name: str, content: bytes) -> int:
    """A descriptor of a file that exists in memory only."""
    descriptor = os.memfd_create(name)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _read_all(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        return os.read(descriptor, 4096).decode(errors="replace").strip()[-300:]
    return ""
