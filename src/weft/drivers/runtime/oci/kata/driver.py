"""Containers in machines of their own that Kata makes, through the node's containerd.

Reads and writes ``Host.state_dir/kata`` and ``Host.run_dir/kata``, as the driver of containers does its own folders, of which this
one is another make: records, logs, what was written, finding all again are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.container import ContainerPlan
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import GuestFacts
from weft.drivers.runtime.oci.driver import OciDriver
from weft.drivers.runtime.oci.kata.translate import check_plan
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.probe import read_machine_facts
from weft.drivers.runtime.oci.record import read_record
from weft.drivers.runtime.oci.runtime import Runtime
from weft.drivers.runtime.oci.translate import OciHostFacts

DRIVER = "kata"


class KataDriver(OciDriver):
    """A RuntimeDriver[ContainerPlan] with all that one of containers has. ``containerd``: the address of the one that holds what
    starts from now on, by its runtime ``runtime_class``; "" is the one that holds what there is."""

    engine = "weft.drivers.runtime.oci.kata.engine"
    takes_namespace: Literal[True] = True

    def __init__(self, host: Host, clock: Clock | None, containerd: str = "", runtime_class: str = "") -> None:
        own = msgspec.structs.replace(
            host, state_dir=str(Path(host.state_dir) / DRIVER), run_dir=str(Path(host.run_dir) / DRIVER)
        )
        folders = sorted(Path(own.state_dir, "containers").glob("*")) if not containerd else []
        for folder in folders:
            if (record := read_record(ContainerPaths(run=folder, state=folder))) is not None:
                containerd, runtime_class = record.held_by, record.runtime
        super().__init__(own, clock, runtime_class, containerd)
        self.name = DRIVER

    async def start(self, plan: ContainerPlan) -> GuestFacts:
        check_plan(plan)
        return await super().start(_without_users(plan))

    async def adjust(self, plan: ContainerPlan) -> GuestFacts:
        return await super().adjust(_without_users(plan))

    async def _read_facts(self) -> OciHostFacts:
        return read_machine_facts(self._groups)

    async def _runtime_of(self, name: str) -> Runtime:
        return Runtime(name, self._run / "runtime")


def _without_users(plan: ContainerPlan) -> ContainerPlan:
    """Its machine has users of its own."""
    return msgspec.structs.replace(plan, user_namespace=False)
