"""Instances that are this node's own processes, each in a control group: how one starts, and how those of a killed agent end. A
driver adds the walls."""

from __future__ import annotations

import asyncio
import os
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple, Protocol

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.driver.container import ContainerPlan, User
from weft.contracts.driver.function import EgressEndpoint, Recipe, Roots
from weft.contracts.driver.host import Host
from weft.drivers.cgroup.groups import FREEZER, ControlGroups
from weft.drivers.cgroup.limits import limit_instance
from weft.drivers.cgroup.trees import CONTROLLERS
from weft.drivers.function.egress import name_files
from weft.drivers.function.instance import Launched, Started, bring_up
from weft.drivers.function.mounts import MOST_LAYERS, mount_parts
from weft.drivers.function.network import enter_network
from weft.drivers.function.plan import plan_instance
from weft.drivers.linux.namespace_thread import leave_mounts
from weft.objects.errors import DriverFailed, WeftError

FOLDER = "functions"  # below the node's run folder, and below its control group


class ConfinedProgram(NamedTuple):
    """How a program behind the walls is started: ``descriptors`` are open in it, and closed here afterwards."""

    words: list[str]
    descriptors: list[int]
    path: str  # its own PATH: programs inside can read its environment, and there is nothing else in it


class Walls(Protocol):
    """The isolation of one instance."""

    hidden: list[str]  # mounts that the program which builds them must not see
    mapping: int | None  # a descriptor of the user namespace by which its layers' owners are seen as its users

    def enter(self, place: Path, plan: ContainerPlan) -> ConfinedProgram:
        """Enter the instance, in the thread that has mounted its root in ``place``. Raises OSError."""

    def let_go(self) -> None:
        """Release it once nothing of the instance is left. May be repeated."""


class OwnProcesses(ABC):
    """Most of an InstanceDriver. ``name`` begins the names of its groups; ``nested`` as ControlGroups has it."""

    def __init__(self, host: Host, clock: Clock | None, name: str, *, nested: bool = False) -> None:
        self._clock = clock or SystemClock()
        self._name = name
        self._place = Path(host.run_dir) / FOLDER
        self._groups = ControlGroups(f"{host.cgroup}/{FOLDER}", controllers=(*CONTROLLERS, FREEZER), nested=nested)
        self._problem: str | None = None
        self._probing = asyncio.Lock()

    async def probe(self) -> str:
        async with self._probing:
            if self._problem is None:
                try:
                    self._problem = await self._probe()
                except WeftError as error:
                    self._problem = error.message
                except OSError as error:
                    self._problem = f"{error.filename}: {error.strerror}"
        return self._problem

    async def recover(self) -> int:
        left = self._groups.names(self._name)
        for name in left:
            await self._groups.clear(name, self._clock)
        return len(left)

    async def start(self, id: str, recipe: Recipe, roots: Roots) -> Started:
        """See contracts.driver.function. Raises DriverFailed."""
        if problem := await self.probe():
            raise DriverFailed(problem, reason="notServed", details={"step": "start"})
        if len(roots.root) > MOST_LAYERS:
            raise DriverFailed(
                f"{recipe.what}: its image has more layers than the {MOST_LAYERS} that fit", details={"step": "start"}
            )
        plan = plan_instance(id, recipe, roots, self._choose_user(recipe, roots))
        return await self._start(plan, recipe.what, roots.egress_endpoint, has_image=bool(recipe.image))

    async def forget(self, digest: str) -> None:  # noqa: B027, a driver with nothing to forget is whole
        """Instances share nothing that could be removed."""

    async def close(self) -> None:  # noqa: B027, likewise
        """Its instances are ended by the one that started them."""

    async def _start(
        self, plan: ContainerPlan, what: str, endpoint: EgressEndpoint | None = None, *, has_image: bool = False
    ) -> Started:
        name, walls = f"{self._name}{plan.id}", None

        def let_go() -> None:
            if walls is not None:
                walls.let_go()

        async def clear() -> None:
            await self._groups.clear(name, self._clock)
            let_go()

        try:
            groups = self._groups.create(name, limit_instance(plan.cpu, plan.memory_bytes, plan.pids))
            walls = built = await self._build(name, groups, has_image=has_image)
        except BaseException:
            await asyncio.shield(clear())
            raise
        try:
            return await bring_up(
                lambda: launch(self._place, plan, built, endpoint),
                lambda made: Started(plan.id, name, *made, self._groups, self._clock, let_go),
                clear,
            )
        except OSError as error:
            raise DriverFailed(
                f"{what}: its sandbox can't be started: {error.filename or ''} {error.strerror or error}",
                details={"step": "start"},
            ) from error

    @abstractmethod
    async def _probe(self) -> str:
        """Why this node can't, for people; "" if it can. Raises WeftError, OSError."""

    @abstractmethod
    async def _build(self, name: str, groups: list[Path], *, has_image: bool) -> Walls:
        """Build the walls of one instance, whose control group is ``name``, entered by the files ``groups``. Raises
        DriverFailed."""

    @abstractmethod
    def _choose_user(self, recipe: Recipe, roots: Roots) -> User:
        """Its user inside."""

    async def _open_place(self) -> str:
        """Make the folder that instances' users pass through; returns why instances can't run in it, in control groups of their
        own."""
        self._place.mkdir(parents=True, exist_ok=True)
        self._place.chmod(0o711)
        return await asyncio.to_thread(self._groups.check, limit_instance(1.0, 64 << 20, 16)) or ""


def launch(place: Path, plan: ContainerPlan, walls: Walls, endpoint: EgressEndpoint | None) -> Launched:
    """Launch an instance, in a thread of its own. Raises OSError."""
    leave_mounts(walls.hidden)
    plan = mount_parts(place, plan, walls.mapping, name_files(endpoint))
    listening = enter_network(endpoint)
    output, theirs = os.pipe2(os.O_CLOEXEC)
    opened = [theirs]
    try:
        entry = walls.enter(place, plan)
        opened += entry.descriptors
        process = subprocess.Popen(
            entry.words,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            pass_fds=entry.descriptors,
            env={"PATH": entry.path},
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        os.close(output)
        listening.close()
        raise
    finally:
        for descriptor in opened:
            os.close(descriptor)
    os.set_blocking(output, False)
    return process, listening, output
