"""Many agents in one process, each the real one over fake drivers: ``python -m benchmarks.fabric.agents [--gateways] FOLDER …``.

With ``--gateways`` each keeps a connection to every gateway, over which nothing comes. Each FOLDER is a node's state folder as its
enrolment left it; ``capacity.json`` in it says what the node has, if it isn't as the others. The process is ready when it says
so, and ends at SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from benchmarks.fabric.containers import NoContainers, OneImage
from weft.agent.agent import Agent
from weft.agent.node.enrolment import make_context, read_enrolment
from weft.agent.server.client import RemoteServer
from weft.agent.server.line import ServerLine
from weft.agent.stream.gateway import Gateway, GatewayConnection
from weft.agent.stream.gateways import Gateways
from weft.agent.workload.runtimes import Runtimes
from weft.client.api import Client
from weft.client.tls import make_tls
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.network.fake.driver import FakeNetwork
from weft.drivers.runtime.fake.driver import FakeDriver
from weft.drivers.volume.fake.driver import FakeVolumes
from weft.launch.agent.parts import AgentParts
from weft.objects.errors import Unavailable
from weft.objects.identity import short_id

CAPACITY = Capacity(cpu=32, memory_bytes=64 << 30, disk_bytes=1 << 40)


def make_agent(folder: Path, clock: SystemClock, *, keeps_gateways: bool = False) -> Agent:
    enrolment = read_enrolment(folder)
    id = short_id(enrolment.node_uid)
    run_dir = str(folder / "run")
    own = folder / "capacity.json"
    capacity = msgspec.json.decode(own.read_bytes(), type=Capacity) if own.exists() else CAPACITY
    host = Host(
        enrolment.node, enrolment.node_uid, str(folder), run_dir, f"w{id[:3]}", enrolment.address, "lo", id, capacity
    )
    client = Client(make_context(folder, enrolment))
    containers = {"container": NoContainers("container"), "container/vm": NoContainers("vm")}
    runtimes = Runtimes({"vm": FakeDriver(host, clock), **containers})
    network, volumes = FakeNetwork(host, clock), FakeVolumes(host, clock)
    line = ServerLine(clock)
    server = RemoteServer(client, line)
    parts = AgentParts(host, server, runtimes, network, volumes, clock, container_images=OneImage())
    if keeps_gateways:
        tls = make_tls(client.context)

        def connect(gateway: Gateway) -> GatewayConnection:
            return GatewayConnection(gateway, tls, enrolment.node_uid, refuse, clock, line=line)

        gateways = Gateways(enrolment.gateway, enrolment.gateways, connect)
        parts.on_gateways = gateways.put
        parts.tasks.spawn(gateways.keep())
    return Agent(parts)


async def refuse(*_: object) -> None:
    raise Unavailable("a node of a benchmark serves no streams")


async def serve(folders: list[Path], *, keeps_gateways: bool) -> None:
    clock = SystemClock()
    agents = [make_agent(folder, clock, keeps_gateways=keeps_gateways) for folder in folders]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    for agent in agents:
        await agent.start()
    print("ready", flush=True)
    running = [asyncio.ensure_future(agent.run()) for agent in agents]
    stopping = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait([*running, stopping], return_when=asyncio.FIRST_COMPLETED)
    for one in done - {stopping}:
        one.result()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    words = sys.argv[1:]
    uvloop.run(serve([Path(word) for word in words if word != "--gateways"], keeps_gateways="--gateways" in words))
