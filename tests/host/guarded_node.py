"""A node's agent over real containers, with its guard, and a folder for a server: ``guarded_node.py HOST FOLDER LAYER…``.

As ``migration_node.py``, with times a tenth as long. While FOLDER/cut is there, no server answers; FOLDER/said has a line for each
answer: ``report TIME TOKEN``, by CLOCK_BOOTTIME of before it was given, and ``list``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from migration_node import FolderServer
from tests.scenario.container_agent_lab import Store, World

import weft.agent.agent
import weft.agent.guard.guests
import weft.agent.guard.plan
import weft.agent.server.contact
import weft.agent.server.line
from weft.agent.agent import Agent
from weft.agent.workload.runtimes import Runtimes
from weft.client.watch import WatchEvent
from weft.contracts.clock import SystemClock, read_boot_time
from weft.contracts.driver.container import User
from weft.contracts.driver.host import Host
from weft.contracts.driver.image import OciConfig, OciImage
from weft.drivers.guard.driver import GuestGuard
from weft.drivers.network.fake.driver import FakeNetwork, FakeWire
from weft.drivers.runtime.fake.driver import FakeDriver
from weft.drivers.runtime.oci.driver import OciDriver
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.failover.timing import Timing
from weft.launch.agent.parts import AgentParts
from weft.objects.errors import Unavailable, WeftError
from weft.protocol.report import ReportAnswer, ReportBody

TIMING = Timing(renew=0.8, lease=4.5, kill=0.5, promise=7.5)
CONTACT_SECONDS, START_SECONDS, LOOK_SECONDS = 2.5, 0.3, 0.5


class CutServer(FolderServer):
    token = ""

    def report(self, node: str, body: ReportBody) -> ReportAnswer:
        at = read_boot_time()
        self._refuse_if_cut()
        answer = super().report(node, body)
        self.token = body.node.contact if body.node is not None else self.token
        self._say(f"report {at:.3f} {self.token}")
        return answer

    def watch(self, kind: str, query: dict[str, str], on_trouble: Callable[[WeftError], None]) -> Iterator[WatchEvent]:
        while (self._folder / "cut").exists() and not self.closed.wait(0.02):
            pass
        for event in super().watch(kind, query, on_trouble):
            if event.type == "synced" and kind == "allocation":
                self._say("list")
            yield event

    def _refuse_if_cut(self) -> None:
        if (self._folder / "cut").exists():
            raise Unavailable("no weft server answers")

    def _say(self, line: str) -> None:
        with (self._folder / "said").open("a") as file:
            file.write(f"{line}\n")


class Busybox(Store):
    """The lab's layers as the only image."""

    def __init__(self, layers: list[str]) -> None:
        super().__init__(World())
        self._image = OciImage("busybox", "sha256:busybox", OciConfig(), layers, 100)

    async def pull(self, reference: str, digest: str = "", **_: object) -> OciImage:
        return self._image

    async def find(self, digest: str) -> OciImage | None:
        return self._image

    def root(self, image: OciImage) -> list[str]:
        return image.layers

    async def find_user(self, image: OciImage, user: str) -> User:
        return User(home="/root")


async def main(host: Host, folder: Path, layers: list[str]) -> None:
    weft.agent.agent.HEARTBEAT_SECONDS = TIMING.renew
    weft.agent.server.contact.CONTACT_SECONDS = CONTACT_SECONDS
    weft.agent.server.line.SHORT_CEILING_SECONDS = LOOK_SECONDS
    weft.agent.guard.plan.START_SECONDS = START_SECONDS
    weft.agent.guard.plan.REVIEW_SECONDS = LOOK_SECONDS
    weft.agent.agent.NODES = weft.agent.guard.guests.NODES = weft.agent.guard.plan.NODES = TIMING
    clock = SystemClock()
    agent = Agent(
        AgentParts(
            host,
            CutServer(folder, folder / "no-bundle"),  # type: ignore[arg-type]
            Runtimes({"vm": FakeDriver(host, clock), "container": OciDriver(host, clock, runtime="crun")}),
            FakeNetwork(host, clock, FakeWire()),
            DirectoryVolumes(host),
            clock,
            container_images=Busybox(layers),
            guard=GuestGuard(host, clock),
        )
    )
    await agent.start()
    await agent.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Host), Path(sys.argv[2]), sys.argv[3:]))
