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
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.function import EgressEndpoint, Isolation, Recipe, Roots, compose_command, compose_env
from weft.contracts.driver.host import Host
from weft.drivers.cgroup.limits import Limits, limit_instance
from weft.drivers.function.egress import name_files
from weft.drivers.function.instance import Launched, Started
from weft.drivers.function.instances import OwnProcesses, limit
from weft.drivers.function.mounts import mount_parts
from weft.drivers.function.network import enter_network
from weft.drivers.function.process import sandbox
from weft.drivers.function.process.sandbox import Sandbox, choose_user, plan_entry, plan_sandbox
from weft.drivers.function.scratch import bound_scratch
from weft.drivers.linux.namespace_thread import leave_mounts
from weft.drivers.linux.seccomp import read_profile, translate_seccomp
from weft.drivers.linux.seccomp_bpf import compile_filter, tighten

TRIAL_SECONDS = 20.0
NAME = "p-"  # how its groups' names begin


class Launch(msgspec.Struct, frozen=True):
    """All that the starting thread needs."""

    groups: list[str]
    user: int
    place: Path
    layers: list[str]
    code: str
    workdir: str
    hostname: str
    scratch: int
    command: list[str]
    env: dict[str, str]
    filter: bytes
    egress_endpoint: EgressEndpoint | None


class ProcessInstances(OwnProcesses):
    """An InstanceDriver for the isolation ``process``."""

    isolation: Isolation = "process"

    def __init__(self, host: Host, clock: Clock | None = None) -> None:
        super().__init__(host, clock, NAME)
        self._filter: bytes | None = None

    async def start(self, id: str, recipe: Recipe, roots: Roots) -> Started:
        """See contracts.function. Raises DriverFailed."""
        await self._refuse(recipe, roots)
        command = compose_command(recipe, roots)
        limits, scratch = limit(recipe), bound_scratch(recipe)
        return await self._start(
            f"{NAME}{id}", id, recipe.what, limits, scratch, roots, command, compose_env(recipe, roots)
        )

    async def close(self) -> None:
        """Its instances are ended by whoever started them."""

    async def _start(
        self,
        name: str,
        id: str,
        what: str,
        limits: Limits,
        scratch: int,
        roots: Roots,
        command: list[str],
        env: dict[str, str],
    ) -> Started:
        assert self._filter is not None
        groups = [str(path) for path in self._groups.create(name, limits)]
        launch = Launch(
            groups=groups,
            user=choose_user(name),
            place=self._place,
            layers=list(roots.root),
            code=roots.code,
            workdir=roots.workdir,
            hostname=id,
            scratch=scratch,
            command=command,
            env=env,
            filter=self._filter,
            egress_endpoint=roots.egress_endpoint,
        )
        return await self._bring_up(
            f"{what}: its sandbox can't be started",
            lambda: launch_sandbox(launch),
            lambda made: Started(id, name, *made, self._groups, self._clock),
            lambda: self._groups.clear(name, self._clock),
        )

    async def _look(self) -> str:
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
        """Run a program of the node's own in a sandbox; what went wrong, or nothing."""
        name = f"{NAME}probe-{os.getpid()}"
        roots = Roots(root=["/"], workdir="/")
        started = await self._start(
            name, "probe", "a trial", limit_instance(1.0, 128 << 20, 32), 1 << 20, roots, ["/bin/true"], {}
        )
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                ended = await started.wait()
            if ended.code == 0:
                return ""
            said = await asyncio.to_thread(_read_all, started.output)
            return f"sandboxes don't work on this node: {said or ended}"
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


def launch_sandbox(launch: Launch) -> Launched:
    """In a thread of its own. Raises OSError."""
    leave_mounts(())
    parts = mount_parts(launch.place, launch.layers, launch.code, files=name_files(launch.egress_endpoint))
    listening = enter_network(launch.egress_endpoint)
    output, theirs = os.pipe2(os.O_CLOEXEC)
    handed = [theirs]
    try:
        handed.append(_hand_over("filter", launch.filter))
        inside = Sandbox(parts.root, parts.code, launch.workdir, launch.hostname, launch.scratch, launch.env)
        handed.append(_hand_over("words", _pack(plan_sandbox(inside, handed[1]))))
        process = subprocess.Popen(
            plan_entry(launch.groups, launch.user, handed[2], launch.command),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            pass_fds=handed[1:],
            env={"PATH": sandbox.PATH},  # what runs inside can read it
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        os.close(output)
        listening.close()
        raise
    finally:
        for descriptor in handed:
            os.close(descriptor)
    os.set_blocking(output, False)
    return process, listening, output


def _hand_over(name: str, content: bytes) -> int:
    descriptor = os.memfd_create(name)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _pack(words: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def _read_all(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        return os.read(descriptor, 4096).decode(errors="replace").strip()[-300:]
    return ""
