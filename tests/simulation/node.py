"""One machine: what outlives its agent, its power, and the agent that runs now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.scenario.agent_lab import BUNDLE
from tests.scenario.container_agent_lab import Store, World
from tests.simulation.connections import Faults, Line, NodeHttp
from tests.simulation.conversions import REGISTRY, SeenContainers
from tests.simulation.disks import MarkedVolumes
from tests.simulation.jobs import Tasks
from tests.simulation.layers import LayeredVolumes
from tests.simulation.machines import WatchedDriver
from tests.simulation.underlay import MemoryWire
from tests.simulation.virtual_loop import Clock, Part
from weft.agent.agent import Agent
from weft.agent.server.client import RemoteServer
from weft.agent.server.line import ServerLine
from weft.agent.workload.runtimes import Runtimes
from weft.client.api import Client
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.guard import GuardDriver
from weft.drivers.network.fake.driver import FakeNetwork, FakeWire
from weft.drivers.runtime.fake.driver import FakeOrders
from weft.drivers.volume.fake.driver import FakeShelf
from weft.drivers.volume.fake.layers import FakeLayers
from weft.launch.agent.parts import AgentParts
from weft.objects.errors import DriverFailed
from weft.objects.identity import new_uid

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric

GIB = 1024**3
READING = (
    *("inspect", "recover", "probe", "list", "close"),
    *("list_kept", "list_layers", "list_unneeded", "find_unfinished"),
)


class Node:
    def __init__(self, fabric: Fabric, name: str, number: int) -> None:
        self.fabric, self.name = fabric, name
        self.uid = new_uid()
        self.clock = Clock(fabric.loop)
        folder = fabric.folder / self.uid
        folder.mkdir()
        capacity = Capacity(6.0, 3 * GIB, 100 * GIB)
        address = f"10.99.0.{number}"
        self.host = Host(name, self.uid, str(folder), str(folder), "wsim", address, "lo", "weft/s", capacity)
        self.wire, self.shelf = FakeWire(), FakeShelf()
        self.orders = FakeOrders(boot_seconds=0.5, shutdown_seconds=0.3)
        self.world = World()  # of containers
        self.world.registry |= REGISTRY
        self.layers: FakeLayers | None = None
        self.part: Part | None = None
        self.guard: GuardDriver | None = None
        self.faults: Faults = fabric.fate
        self.runtime = self._make_runtime()

    @property
    def up(self) -> bool:
        return self.part is not None and self.part.alive

    async def live(self) -> None:
        """Be the agent's process, and whatever starts it again when it ends."""
        fabric = self.fabric
        others = fabric.lines[self.name].others if self.name in fabric.lines else []  # its context has them
        line = Line(fabric.doorways, self.faults, self.name, node_uid=self.uid, others=others)
        fabric.lines[self.name] = line
        client = Client.__new__(Client)
        client.project, client._clock = "default", self.clock
        client.http = NodeHttp(line)  # type: ignore[assignment]
        self.runtime = self._make_runtime()
        network = FakeNetwork(self.host, self.clock, self.wire)
        volumes = (LayeredVolumes if fabric.snapshots else MarkedVolumes)(self.host, self.clock, self.shelf)
        self.layers = volumes.layers
        wire = MemoryWire(fabric.underlay, self.name, self.uid)
        runtimes: dict[str, Any] = {"vm": self.runtime}
        if fabric.jobs:
            runtimes["container"] = Tasks(self.world, fabric)
        elif fabric.converts:
            runtimes["container"] = SeenContainers(self.world, fabric, self.name)
        for driver in (*runtimes.values(), network, volumes):
            self._trouble(driver)
        images = Store(self.world) if fabric.jobs or fabric.converts else None
        server = ImageServer(client, ServerLine(self.clock, self.uid))
        agent = Agent(
            AgentParts(
                *(self.host, server, Runtimes(runtimes), network, volumes, self.clock, wire),
                container_images=images,
                guard=self.guard,
            )
        )
        await agent.start()
        await agent.run()

    def _make_runtime(self) -> WatchedDriver:
        return WatchedDriver(self.host, self.clock, self.orders, self.fabric.witness, self.fabric.processes)

    def _trouble(self, driver: Any) -> None:
        """Let the driver's steps be slow and fail now and then."""
        fate = self.fabric.fate
        name = {WatchedDriver: "_obey", FakeNetwork: "meet"}.get(type(driver), "_meet")
        meet = getattr(driver, name)

        async def met(verb: str, *more: str) -> None:
            await asyncio.sleep(fate.delay(0.01))
            if fate.hit("driver is slow"):
                await asyncio.sleep(fate.delay(5.0))
            await meet(verb, *more)
            if verb not in READING and fate.hit("driver fails"):
                raise DriverFailed(f"{verb} did not work", details={"step": verb})

        setattr(driver, name, met)

    def start(self) -> None:
        if self.up:
            return  # its lock lets no second agent run
        if self.name in self.fabric.dark:
            return
        self.part = Part(self.fabric.loop, self.name)
        self.part.spawn(self.live()).add_done_callback(self.fabric.note_end)

    def kill(self) -> None:
        """The agent's process is gone; guests, links and disks stay."""
        if self.part is not None:
            for stream in self.fabric.lines[self.name].streams if self.name in self.fabric.lines else ():
                stream.close()
            self.part.kill()
            self.fabric.underlay.cut(self.name)

    def lose_power(self) -> None:
        """All that runs is gone, and the links with it; disks and files stay."""
        self.kill()
        self.fabric.underlay.cut(self.name)
        self.runtime.kill_all()
        if self.fabric.converts:
            SeenContainers(self.world, self.fabric, self.name).lose_power()
        else:
            Tasks(self.world, self.fabric).lose_power()
        self.wire.segments.clear()
        self.wire.ports.clear()
        self.wire.forwards.clear()

    def kill_guest(self, guest_id: str) -> None:
        if self.up:
            self.runtime.kill(guest_id)
        else:
            self.runtime.kill_process(guest_id)

    def guests(self) -> dict[str, str]:
        """Allocation uid → state of each guest that the machine has."""
        return self.runtime.states()

    def copies(self) -> set[str]:
        """Short ids of the allocations that the machine remembers."""
        return {path.stem for path in Path(self.host.state_dir, "allocations").glob("*.json")}


class ImageServer(RemoteServer):
    def fetch_blob(self, sha256: str, out: Any, on_progress: Callable[[int], None]) -> None:
        out.write(BUNDLE)
