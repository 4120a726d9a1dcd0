"""One node's agent over real guests, with a folder for a server: ``migration_node.py HOST FOLDER BUNDLE [DEATH]``, HOST as JSON.
DEATH like ``migration.target:MigrationTarget._take_over:before`` kills it by SIGKILL before (or after) that step of weft.agent.

Allocations are files in FOLDER/wishes; what the agent reports lies in FOLDER/reports, what QEMUs are asked in FOLDER/asked, a line
each: time and command. Each line of stdin (JSON: guest, argv, stdin) is a command for a guest; what it printed comes back as a
line. With ``watch`` it is a workload's uid: from then on somebody watches its metrics. Killed at any moment, its guests go on.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import msgspec

from weft.agent.agent import Agent
from weft.agent.samples.sampler import Sampler
from weft.agent.server.line import ServerLine
from weft.agent.workload.runtimes import Runtimes
from weft.client.watch import WatchEvent
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.network.fake.driver import FakeNetwork, FakeWire
from weft.drivers.runtime.qemu.devices import disk_counters
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.runtime.qemu.qmp import Qmp
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.kinds.parts.stream_verbs import SamplesInput
from weft.launch.agent.parts import AgentParts
from weft.objects.errors import WeftError
from weft.protocol.report import OpenedSecrets, ReportAnswer, ReportBody


class FolderServer:
    def __init__(self, folder: Path, bundle: Path) -> None:
        self.closed = threading.Event()
        self.line = ServerLine(SystemClock())
        self._folder, self._bundle = folder, bundle

    def watch(self, kind: str, query: dict[str, str], on_trouble: Callable[[WeftError], None]) -> Iterator[WatchEvent]:
        seen: dict[str, bytes] = {}
        synced = False
        while not self.closed.is_set():
            now = {}
            for path in sorted((self._folder / "wishes").glob("*.json")) if kind == "allocation" else ():
                now[path.name] = path.read_bytes()
            for name, data in now.items():
                if seen.get(name) != data:
                    yield WatchEvent("put", "e:1", msgspec.Raw(data))
            for name in seen.keys() - now.keys():
                yield WatchEvent("delete", "e:1", msgspec.Raw(seen[name]))
            seen = now
            if not synced:
                synced = True
                yield WatchEvent("synced", "e:1")
            self.closed.wait(0.02)

    def report(self, node: str, body: ReportBody) -> ReportAnswer:
        for name, report in body.allocations.items():
            path = self._folder / "reports" / f"{name}.json"
            path.with_suffix(".new").write_bytes(msgspec.json.encode(report))
            path.with_suffix(".new").rename(path)
        return ReportAnswer()

    def read_registry_secret(self, node: str, ticket: str) -> OpenedSecrets:
        return self.read_secrets(node, ticket)

    def read_secrets(self, node: str, allocation: str) -> OpenedSecrets:
        return OpenedSecrets()

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None]) -> None:
        out.write(self._bundle.read_bytes())

    def close(self) -> None:
        self.closed.set()


def die_at(death: str) -> None:
    module, place, when = death.split(":")
    owner, name = place.split(".")
    cls = getattr(importlib.import_module(f"weft.agent.{module}"), owner)
    step = getattr(cls, name)

    async def perform_step(*args: Any) -> Any:
        if when == "after":
            await step(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(cls, name, perform_step)


def note_commands(path: Path) -> None:
    """Note what is sent to QEMUs' monitors: the driver's own, and the one for counters."""
    execute, file = Qmp.execute, path.open("a", buffering=1)

    def note(command: str) -> None:
        file.write(f"{time.monotonic():.3f} {command}\n")

    async def noted(self: Qmp, command: str, **more: Any) -> Any:
        note(more.get("command-line", command))
        return await execute(self, command, **more)

    class Noting(socket.socket):
        def send(self, data: Any, *more: int) -> int:
            note(msgspec.json.decode(data)["execute"])
            return super().send(data, *more)

    Qmp.execute = noted  # type: ignore[method-assign]
    disk_counters.socket = SimpleNamespace(**{**vars(socket), "socket": Noting})  # type: ignore[attr-defined]


async def watch(sampler: Sampler, uid: str) -> None:
    """As ``weft vm metrics --watch`` does at 5 Hz."""
    while True:
        await sampler.answer(uid, SamplesInput(1.0))
        await asyncio.sleep(0.2)


async def main(host: Host, folder: Path, bundle: Path) -> None:
    note_commands(folder / "asked")
    clock = SystemClock()
    runtime = QemuDriver(host, clock)
    network, volumes = FakeNetwork(host, clock, FakeWire()), DirectoryVolumes(host)
    san = os.environ.get("POOL")
    pools = {"san": DirectoryVolumes(host, "san", san)} if san else {}
    agent = Agent(
        AgentParts(host, FolderServer(folder, bundle), Runtimes({"vm": runtime}), network, volumes, clock, pools=pools)
    )
    sampler = Sampler(agent.parts.samples, Runtimes({"vm": runtime}), agent.parts.table, clock)
    await agent.start()
    beside = [asyncio.create_task(sampler.keep())]
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        asked = msgspec.json.decode(line)
        if uid := asked.get("watch"):
            beside.append(asyncio.create_task(watch(sampler, uid)))
            print('{"code": 0, "said": ""}', flush=True)
        else:
            print(msgspec.json.encode(await perform(runtime, asked)).decode(), flush=True)
    for task in beside:
        task.cancel()
    await agent.close()


async def perform(runtime: QemuDriver, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        session = await runtime.exec(asked["guest"], ExecRequest(argv=asked["argv"]))
        await session.write(bytes.fromhex(asked["stdin"]))
        await session.close_stdin()
        chunks = [chunk async for chunk in session.output()]
    except (WeftError, OSError) as problem:
        return {"error": str(problem)}
    return {"said": b"".join(chunk.data for chunk in chunks).decode(errors="replace"), "code": chunks[-1].code}


if __name__ == "__main__":
    if len(sys.argv) > 4:
        die_at(sys.argv[4])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Host), Path(sys.argv[2]), Path(sys.argv[3])))
