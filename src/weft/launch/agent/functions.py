"""Parts of an agent for instances of functions: the drivers of the chosen isolations, and the source of their parts."""

from __future__ import annotations

import importlib
import ssl
from pathlib import Path
from typing import Any

from weft.agent.function.artifacts import Artifacts
from weft.agent.function.invocations import Functions
from weft.agent.function.local.functions import LocalFunctions
from weft.agent.function.local.server import make_server
from weft.agent.function.pool import FreeCapacity, measure_capacity
from weft.agent.server.client import Server
from weft.agent.trace.invocations import ServedTraces
from weft.contracts.clock import Clock
from weft.contracts.driver.function import InstanceDriver, Isolation
from weft.contracts.driver.host import Host
from weft.contracts.driver.image import OciStore
from weft.launch.agent.parts import AgentParts
from weft.launch.agent.places import read_place
from weft.objects.errors import InvalidInput
from weft.serving.place import DeferredServer
from weft.serving.server import HttpServer, listen, make_server_tls

DRIVERS: dict[Isolation, str] = {
    "process": "weft.drivers.function.process.driver:ProcessInstances",
    "container": "weft.drivers.runtime.oci.function.driver:ContainerInstances",
    "vm": "weft.drivers.runtime.qemu.function.driver:SnapshotInstances",
}


def make_functions(
    host: Host, server: Server, images: OciStore | None, parts: AgentParts, clock: Clock, address: str = ""
) -> Functions:
    """Wired to the agent: allocations have the first claim on the node's capacity, and reports list what runs here. ``address`` is
    where the node serves functions itself; "": nowhere."""
    drivers: dict[Isolation, InstanceDriver] = {
        isolation: _load(place)(host, clock) for isolation, place in DRIVERS.items()
    }

    def measure() -> FreeCapacity:
        cpu, memory = parts.table.count_requested()
        return measure_capacity(host.capacity.cpu, host.capacity.memory_bytes, cpu, memory)

    artifacts = Artifacts(
        host.state_dir, host.node, server, images, lambda: functions.used(), parts.egress_endpoints, parts.images
    )
    functions = Functions(drivers, artifacts, measure, clock)
    if parts.tracer is not None:
        functions.traces = ServedTraces(parts.tracer)
    functions.local = LocalFunctions(
        host.state_dir, host.node, server, artifacts, functions, parts.reporter.put_event, clock, address
    )
    artifacts.find_local = lambda: functions.local.digests if functions.local is not None else set()
    parts.table.functions = functions  # from now on this node runs functions too
    return functions


def make_place(functions: Functions, place: str, tls: Path | None, clock: Clock) -> DeferredServer:
    """Make the place where this node serves functions itself: ``place`` (ADDRESS:PORT), with key and certificate in ``tls``. What
    can't be opened now is tried again. Raises InvalidInput for what can't be a place."""
    address, port = read_place(place, tls is not None)
    local = functions.local
    assert local is not None

    def open_server() -> HttpServer:
        context = _read_tls(tls)
        return make_server(local, listen(address, port), context, clock)

    return DeferredServer(open_server, clock, f"functions at {local.address}", local.note_place)


def _read_tls(tls: Path | None) -> ssl.SSLContext | None:
    """Raises InvalidInput for a file that can't be read, or has something else."""
    if tls is None:
        return None
    try:
        return make_server_tls(tls, tls)
    except (OSError, ValueError) as problem:
        raise InvalidInput(
            f"--local-functions-tls {tls}: {getattr(problem, 'strerror', None) or 'not a key with its certificate, as PEM'}",
            field="local_functions_tls",
        ) from None


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
