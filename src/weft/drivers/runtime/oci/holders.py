"""Finds a container's holder by its record: conmon, or a containerd, which is loaded only where one is used."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING

from weft.contracts.clock import Clock
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.holder import Holder
from weft.drivers.runtime.oci.record import ContainerRecord
from weft.drivers.runtime.oci.runtime import Runtime
from weft.objects.errors import DriverFailed

if TYPE_CHECKING:
    from weft.drivers.runtime.oci.containerd.engine import Engine


class Holders:
    """Holders of one driver. ``module`` has the class of its engines, one for each containerd's address."""

    def __init__(self, module: str, groups: ControlGroups, clock: Clock, node_uid: str) -> None:
        self._module, self._groups, self._clock, self._node_uid = module, groups, clock, node_uid
        self._engines: dict[str, Engine] = {}

    def find(self, record: ContainerRecord, runtime: Runtime) -> Holder[Container]:
        """Raises DriverFailed as ``engine`` does."""
        if not record.held_by:
            late = importlib.import_module("weft.drivers.runtime.oci.conmon.holder")  # once there is a container
            conmon: Holder[Container] = late.Conmon(runtime, self._groups, self._clock)
            return conmon
        return self.engine(record.held_by).hold(runtime)

    def engine(self, address: str) -> Engine:
        """Raises DriverFailed where a package that it needs isn't installed."""
        if address not in self._engines:
            try:
                made = importlib.import_module(self._module).Engine
            except ImportError as missing:
                raise DriverFailed(
                    f"containerd needs the Python package {missing.name}: pip install '.[containerd]' in weft's clone",
                    details={"step": "probe"},
                ) from missing
            self._engines[address] = made(address, self._groups, self._clock, self._node_uid)
        return self._engines[address]

    async def close(self) -> None:
        await asyncio.gather(*(engine.close() for engine in self._engines.values()))
        self._engines.clear()
