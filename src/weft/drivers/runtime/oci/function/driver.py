"""Instances of functions as containers of crun or runc, each the runtime's child for as long as it lives.

Writes control groups below the node's and the runtime's own notes below ``Host.run_dir/functions``; bundle, root and environment
are in mounts of the starting thread only. What a killed agent left behind is ended by ``recover``.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.function import EgressEndpoint, Isolation, Recipe, Roots, compose_command, compose_env
from weft.contracts.driver.host import Host
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.function.egress import name_files
from weft.drivers.function.instance import Launched, Started
from weft.drivers.function.instances import OwnProcesses, limit
from weft.drivers.function.mounts import mount_parts
from weft.drivers.function.network import enter_network
from weft.drivers.function.scratch import bound_scratch
from weft.drivers.linux.namespace_thread import leave_mounts
from weft.drivers.linux.seccomp import read_profile, translate_seccomp
from weft.drivers.linux.seccomp_bpf import tighten
from weft.drivers.runtime.oci.function.config import Inside, translate_instance
from weft.drivers.runtime.oci.function.user_ranges import Ranges
from weft.drivers.runtime.oci.probe import probe_oci
from weft.drivers.runtime.oci.runtime import Runtime

NAME = "c-"  # how its groups' names begin
MANAGED_USER = (1000, 1000)


class Launch(msgspec.Struct, frozen=True):
    """All that the starting thread needs; ``mapping`` is a descriptor of a user namespace to shift an image's owners by."""

    name: str
    runtime: Runtime
    place: Path
    layers: list[str]
    code: str
    inside: Inside
    mapping: int | None
    egress_endpoint: EgressEndpoint | None


class ContainerInstances(OwnProcesses):
    """An InstanceDriver for the isolation ``container``. ``runtime``: crun or runc; None is whichever works, crun first."""

    isolation: Isolation = "container"

    def __init__(self, host: Host, clock: Clock | None = None, runtime: str | None = None) -> None:
        super().__init__(host, clock, NAME, nested=True)
        self._host, self._wanted = host, runtime
        self._ranges = Ranges(host.node_uid)
        self._runtime: Runtime | None = None
        self._seccomp: dict[str, Any] = {}

    async def recover(self) -> int:
        left = await super().recover()
        await asyncio.to_thread(shutil.rmtree, self._place / "runtime", True)
        return left

    async def start(self, id: str, recipe: Recipe, roots: Roots) -> Started:
        """See contracts.function. Raises DriverFailed."""
        await self._refuse(recipe, roots)
        assert self._runtime is not None
        name, first_user = f"{NAME}{id}", self._ranges.take()
        try:
            self._groups.create(name, limit(recipe))
            mapping = await asyncio.to_thread(self._ranges.mapping, first_user) if recipe.image else None
            inside = Inside(
                root="",
                code="",
                hostname=id,
                scratch=bound_scratch(recipe),
                command=compose_command(recipe, roots),
                env=compose_env(recipe, roots),
                workdir=roots.workdir,
                user=roots.user if recipe.image else MANAGED_USER,
                first_user=first_user,
                cgroup=f"{self._groups.path(name)}/in",
                seccomp=self._seccomp,
            )
            launch = Launch(
                name, self._runtime, self._place, list(roots.root), roots.code, inside, mapping, roots.egress_endpoint
            )
        except BaseException:
            await asyncio.shield(self._clear(name, first_user))
            raise
        return await self._bring_up(
            f"{recipe.what}: its container can't be started",
            lambda: launch_container(launch),
            lambda made: Started(id, name, *made, self._groups, self._clock, lambda: self._let_go(name, first_user)),
            lambda: self._clear(name, first_user),
        )

    async def _clear(self, name: str, first_user: int) -> None:
        await self._groups.clear(name, self._clock)
        self._let_go(name, first_user)

    def _let_go(self, name: str, first_user: int) -> None:
        """Nothing of it runs; the runtime's notes are gone already, unless it was ended over them."""
        shutil.rmtree(self._place / "runtime" / name, ignore_errors=True)
        self._ranges.give_back(first_user)

    async def close(self) -> None:
        self._ranges.close()

    async def _look(self) -> str:
        containers = Path(self._host.run_dir) / "containers"
        found = await probe_oci(containers, ControlGroups(self._host.cgroup), self._clock, self._wanted)
        if found.runtime is None or found.facts is None:
            return "; ".join(found.probe.problems) or "no container runtime works on this node"
        if not found.facts.users[1]:
            return "containers have no user namespace of their own on this node"
        if problem := await self._open_place():
            return problem
        self._runtime = msgspec.structs.replace(found.runtime, root=self._place / "runtime")
        self._seccomp = tighten(translate_seccomp(read_profile(), platform.machine(), ()))
        return ""


def launch_container(launch: Launch) -> Launched:
    """In a thread of its own. Raises OSError."""
    leave_mounts(launch.runtime.hidden)
    parts = mount_parts(launch.place, launch.layers, launch.code, launch.mapping, name_files(launch.egress_endpoint))
    listening = enter_network(launch.egress_endpoint)
    output, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        inside = msgspec.structs.replace(launch.inside, root=parts.root, code=parts.code)
        bundle = launch.place / "bundle"
        bundle.mkdir(mode=0o700)
        (bundle / "config.json").write_bytes(msgspec.json.encode(translate_instance(inside)))
        process = subprocess.Popen(
            launch.runtime.words("run", "--bundle", str(bundle), launch.name),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        os.close(output)
        listening.close()
        raise
    finally:
        os.close(theirs)
    os.set_blocking(output, False)
    return process, listening, output
