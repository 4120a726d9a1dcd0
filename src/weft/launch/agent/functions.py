"""What an agent needs for instances of functions: the drivers of the chosen isolations, and the source of their parts."""

from __future__ import annotations

import importlib
from typing import Any

from weft.agent.agent import Agent
from weft.agent.function.artifacts import Artifacts
from weft.agent.function.invocations import Functions
from weft.agent.function.pool import FreeCapacity, measure_capacity
from weft.agent.server.client import Server
from weft.agent.trace.invocations import ServedTraces
from weft.contracts.clock import Clock
from weft.contracts.driver.function import InstanceDriver, Isolation
from weft.contracts.driver.host import Host
from weft.contracts.driver.image import OciStore

DRIVERS: dict[Isolation, str] = {
    "process": "weft.drivers.function.process.driver:ProcessInstances",
    "container": "weft.drivers.runtime.oci.function.driver:ContainerInstances",
    "vm": "weft.drivers.runtime.qemu.function.driver:SnapshotInstances",
}


def make_functions(host: Host, server: Server, images: OciStore | None, agent: Agent, clock: Clock) -> Functions:
    """Wired to the agent: allocations have the first claim on the node's capacity, and reports list what runs here."""
    drivers: dict[Isolation, InstanceDriver] = {
        isolation: _load(place)(host, clock) for isolation, place in DRIVERS.items()
    }

    def measure() -> FreeCapacity:
        cpu, memory = agent.table.count_requested()
        return measure_capacity(host.capacity.cpu, host.capacity.memory_bytes, cpu, memory)

    parts = Artifacts(
        host.state_dir, host.node, server, images, lambda: functions.used(), agent.egress_endpoints, agent.images
    )
    functions = Functions(drivers, parts, measure, clock)
    if agent.tracer is not None:
        functions.traces = ServedTraces(agent.tracer)
    agent.serve_functions(functions)
    return functions


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
