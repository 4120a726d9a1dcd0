"""Instances of functions as containers of crun or runc, each the runtime's child for as long as it lives.

Writes control groups below the node's and the runtime's own notes below ``Host.run_dir/functions``; bundle, root and environment
are in mounts of the starting thread only. What a killed agent left behind is ended by ``recover``.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.container import ContainerPlan, User
from weft.contracts.driver.function import Isolation, Recipe, Roots
from weft.contracts.driver.host import Host
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.function.instances import ConfinedProgram, OwnProcesses
from weft.drivers.linux.seccomp import translate_seccomp
from weft.drivers.linux.seccomp_bpf import tighten
from weft.drivers.runtime.oci.function.user_ranges import Ranges
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.prepare import write_config
from weft.drivers.runtime.oci.probe import probe_oci
from weft.drivers.runtime.oci.runtime import Runtime
from weft.drivers.runtime.oci.translate import INSTANCE, OciHostFacts, Traits, Users, translate_container

NAME = "c-"  # how its groups' names begin
MANAGED_USER = User(1000, 1000)


class RuntimeWalls:
    """The walls that an OCI runtime builds."""

    def __init__(
        self, name: str, cgroup: str, runtime: Runtime, facts: OciHostFacts, traits: Traits, ranges: Ranges
    ) -> None:
        self.hidden = runtime.hidden
        self.first_user = ranges.take()
        self.mapping: int | None = None
        self._name, self._cgroup, self._runtime = name, cgroup, runtime
        self._facts, self._traits, self._ranges = facts, traits, ranges

    def enter(self, place: Path, plan: ContainerPlan) -> ConfinedProgram:
        paths, users = ContainerPaths(run=place, state=place), Users(self.first_user)
        config = translate_container(
            plan, paths, self._facts, cgroup=self._cgroup, users=users, devices=[], traits=self._traits
        )
        write_config(paths, config)
        words = self._runtime.words("run", "--bundle", str(place), self._name)
        return ConfinedProgram(words, [], os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))

    def let_go(self) -> None:
        """The runtime's notes are gone already, unless it was ended over them."""
        shutil.rmtree(self._runtime.root / self._name, ignore_errors=True)
        self._ranges.give_back(self.first_user)


class ContainerInstances(OwnProcesses):
    """An InstanceDriver for the isolation ``container``. ``runtime``: crun or runc; None: the first of them that works."""

    isolation: Isolation = "container"

    def __init__(self, host: Host, clock: Clock | None = None, runtime: str | None = None) -> None:
        super().__init__(host, clock, NAME, nested=True)
        self._host, self._wanted = host, runtime
        self._ranges = Ranges(host.node_uid)
        self._found: tuple[Runtime, OciHostFacts, Traits] | None = None

    async def recover(self) -> int:
        left = await super().recover()
        await asyncio.to_thread(shutil.rmtree, self._place / "runtime", True)
        return left

    async def close(self) -> None:
        self._ranges.close()

    async def _build(self, name: str, groups: list[Path], *, has_image: bool) -> RuntimeWalls:
        assert self._found is not None
        walls = RuntimeWalls(name, f"{self._groups.path(name)}/in", *self._found, self._ranges)
        if has_image:  # whose files belong to users of its own
            try:
                walls.mapping = await asyncio.to_thread(self._ranges.mapping, walls.first_user)
            except BaseException:
                walls.let_go()
                raise
        return walls

    def _choose_user(self, recipe: Recipe, roots: Roots) -> User:
        return User(*roots.user) if recipe.image else MANAGED_USER

    async def _probe(self) -> str:
        containers = Path(self._host.run_dir) / "containers"
        found = await probe_oci(containers, ControlGroups(self._host.cgroup), self._clock, self._wanted)
        if found.runtime is None or found.facts is None:
            return "; ".join(found.probe.problems) or "no container runtime works on this node"
        if not found.facts.users[1]:
            return "containers have no user namespace of their own on this node"
        if problem := await self._open_place():
            return problem
        runtime = msgspec.structs.replace(found.runtime, root=self._place / "runtime")
        seccomp = tighten(translate_seccomp(found.facts.profile, found.facts.machine, ()))
        self._found = runtime, found.facts, msgspec.structs.replace(INSTANCE, seccomp=seccomp)
        return ""
