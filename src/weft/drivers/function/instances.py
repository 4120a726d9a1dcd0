"""What drivers have in common whose instances are this node's own processes, each in a control group: one folder, one probe,
and an end for whatever a killed agent left behind."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.driver.function import Recipe, Roots
from weft.contracts.driver.host import Host
from weft.drivers.cgroup.groups import FREEZER, ControlGroups
from weft.drivers.cgroup.limits import Limits, limit_instance
from weft.drivers.cgroup.trees import CONTROLLERS
from weft.drivers.function.instance import Launched, Started, bring_up
from weft.drivers.function.mounts import MOST_LAYERS
from weft.objects.errors import DriverFailed, WeftError

FOLDER = "functions"  # below the node's run folder, and below its control group


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
                    self._problem = await self._look()
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

    async def forget(self, digest: str) -> None:  # noqa: B027, a driver with nothing to forget is whole
        """Instances share nothing that could go."""

    @abstractmethod
    async def _look(self) -> str:
        """Why this node can't, for people; "" if it can. Raises WeftError, OSError."""

    async def _open_place(self) -> str:
        """Make the folder that instances' users pass through; why there can't be instances in it, in control groups of
        their own."""
        self._place.mkdir(parents=True, exist_ok=True)
        self._place.chmod(0o711)
        return await asyncio.to_thread(self._groups.check, limit_instance(1.0, 64 << 20, 16)) or ""

    async def _refuse(self, recipe: Recipe, roots: Roots) -> None:
        """Raises DriverFailed for what can't be started here."""
        if problem := await self.probe():
            raise DriverFailed(problem, reason="notServed", details={"step": "start"})
        if len(roots.root) > MOST_LAYERS:
            raise DriverFailed(
                f"{recipe.what}: its image has more layers than the {MOST_LAYERS} that fit", details={"step": "start"}
            )

    async def _bring_up(
        self,
        what: str,
        launch: Callable[[], Launched],
        make: Callable[[Launched], Started],
        clear: Callable[[], Awaitable[object]],
    ) -> Started:
        """As ``bring_up``. Raises DriverFailed that names ``what``."""
        try:
            return await bring_up(launch, make, clear)
        except OSError as error:
            raise DriverFailed(
                f"{what}: {error.filename or ''} {error.strerror or error}", details={"step": "start"}
            ) from error


def limit(recipe: Recipe) -> Limits:
    """Pure."""
    return limit_instance(recipe.cpu, recipe.memory, recipe.pids)
