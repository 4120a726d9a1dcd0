"""CPU time of a request in the API server's own thread: HTTP, handler and audit record, without TLS, sockets and a disk's store.

Everything is in this process, over the store in memory, so that nothing else's turns are measured: the figure is the best of many
rounds, and differs by a percent or two between runs where the rates of ``store_api`` differ by a third.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks.measurement import Figure, Measurement
from benchmarks.store_api.load import IMAGE, VMS, make_vm
from weft.api.app import build_app
from weft.api.bootstrap import bootstrap
from weft.api.context import ApiContext, Settings
from weft.api.server import make_api_server
from weft.client.context import read_context
from weft.contracts.clock import SystemClock
from weft.contracts.store import Put
from weft.launch.entry import SELDOM
from weft.launch.process.log import gather_logs
from weft.objects.envelope import encode_envelope
from weft.serving.protocol import HttpProtocol
from weft.store.memory import MemoryStore
from weft.telemetry.journal import SqliteJournal
from weft.trust.ca import Authority
from weft.trust.seal import SealKeys

CLIENTS = 16
ROUNDS = 400
TURNS = 5  # requests of each client in a round
LISTED = 100


class Client(asyncio.Transport):
    """A connection to ``server`` without a socket; one request at a time."""

    def __init__(self, server: Any, head: bytes) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self._head = head
        self._answered: asyncio.Future[bytes] | None = None
        self._protocol = HttpProtocol(server, "127.0.0.1")
        self._protocol.connection_made(self)

    def request(self, method: str, path: str, body: bytes = b"") -> asyncio.Future[bytes]:
        """The answer as it would go over the wire."""
        self._answered = asyncio.get_running_loop().create_future()
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        self._protocol.data_received(f"{method} {path}".encode() + self._head + length + b"\r\n" + body)
        return self._answered

    def write(self, data: Any) -> None:
        assert self._answered is not None
        self._answered.set_result(data)

    def is_closing(self) -> bool:
        return False


Work = Callable[[Client, int], asyncio.Future[bytes]]


class Rig:
    """An API server in this process, and its clients."""

    async def open(self, folder: Path) -> None:
        clock = SystemClock()
        store = MemoryStore(clock)
        self._journal = SqliteJournal(folder / "journal.db", clock)
        settings = Settings(folder / "images", b"k" * 32, ("127.0.0.1:9",), "weft", seal_keys=SealKeys.of(b"s" * 32))
        more: dict[str, Any] = {}
        if "audit" in {field.name for field in dataclasses.fields(ApiContext)}:  # commits without one are measured, too
            more["audit"] = importlib.import_module("weft.telemetry.audit.log").AuditLog(folder / "audit", clock)
            more["audit"].open()
        self._more = more
        logs = gather_logs()
        self.context = ApiContext(store, self._journal, clock, Authority(folder, clock), settings, **more)
        server = make_api_server(build_app(self.context, logs.write_line), [], None, clock)
        server.date = "date: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
        await bootstrap(self.context, folder / "context.json", "https://127.0.0.1:9")
        self.context.start()
        self._flushing = asyncio.create_task(logs.keep_flushing(clock))
        token = read_context(folder / "context.json").token
        head = f" HTTP/1.1\r\nHost: 127.0.0.1:9\r\nAuthorization: Bearer {token}\r\n".encode()
        self._clients = [Client(server, head) for _ in range(CLIENTS)]
        made = await self._clients[0].request("POST", "/v1/projects/default/images", msgspec.json.encode(IMAGE))
        if b" 201 " not in made[:20]:
            raise SystemExit(made.decode())
        await store.commit([Put(vm.key, encode_envelope(vm)) for vm in map(make_vm, range(LISTED))])
        self._generations = [1] * CLIENTS
        gc.set_threshold(*SELDOM)  # as the server's process has it

    async def close(self) -> None:
        self._flushing.cancel()
        await self.context.stop()
        self._journal.close()
        for audit in self._more.values():
            audit.close()

    async def time(self, work: Work, turns: int) -> float:
        """CPU seconds of each request, when all clients do ``work`` at once, so many times."""
        began = time.thread_time()
        for _ in range(turns):
            answers = [work(client, number) for number, client in enumerate(self._clients)]
            await asyncio.wait(answers)
        took = time.thread_time() - began
        for answer in answers:
            if b" 200 " not in answer.result()[:20]:
                raise SystemExit(answer.result().decode())
        return took / turns / CLIENTS

    def read(self, client: Client, number: int) -> asyncio.Future[bytes]:
        return client.request("GET", f"{VMS}/bench-{number}")

    def list(self, client: Client, number: int) -> asyncio.Future[bytes]:
        return client.request("GET", VMS)

    def update(self, client: Client, number: int) -> asyncio.Future[bytes]:
        now = self._generations[number]
        self._generations[number] += 1
        spec = {"image": "bench", "networks": [], "grace": 1 + now % 1000}
        return client.request("PUT", f"{VMS}/bench-{number}", msgspec.json.encode({"generation": now, "spec": spec}))


async def run(folder: Path) -> dict[str, list[float]]:
    """CPU seconds of each request, by what it does and round."""
    rig = Rig()
    await rig.open(folder)
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for what, work, turns in (
            ("a read", rig.read, TURNS),
            (f"a list of {LISTED}", rig.list, 1),
            ("an update", rig.update, TURNS),
        ):
            taken.setdefault(what, []).append(await rig.time(work, turns))
    await rig.close()
    return taken


def measure() -> Measurement:
    with tempfile.TemporaryDirectory() as name:
        logging.disable()
        taken = uvloop.run(run(Path(name)))
    return Measurement(
        "api_cpu",
        f"CPU time of a request in the API server's thread, {CLIENTS} at once, over the store in memory: HTTP, handler and audit "
        f"record, without TLS and sockets. The best of {ROUNDS} rounds, and their median.",
        [
            Figure(f"CPU of {what}", f"{min(costs) * 1e6:.1f} µs (median {sorted(costs)[len(costs) // 2] * 1e6:.1f})")
            for what, costs in taken.items()
        ],
    )
