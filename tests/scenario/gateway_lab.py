"""A gateway with real TLS on loopback, agents' control connections to it, and clients, for the gateway's scenarios."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from tests.node_key import make_node_key

from weft.agent.logs.collector import LogCollector
from weft.agent.state.allocation import LocalAllocation, read_allocation
from weft.agent.stream.gateway import Gateway as Place
from weft.agent.stream.gateway import GatewayConnection
from weft.agent.stream.server import Streams
from weft.agent.workload.runtimes import Runtimes
from weft.client.context import Context
from weft.client.tls import make_tls
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.network.fake.driver import FakeNetwork
from weft.drivers.runtime.fake.driver import FakeDriver
from weft.drivers.runtime.qemu.console.output import PrintedHere
from weft.drivers.runtime.qemu.translate import GuestPaths
from weft.gateway.gateway import Functions, Gateway
from weft.gateway.stream.rights import OpenStreams
from weft.launch.gateway.main import make_tls as make_server_tls
from weft.objects.envelope import Envelope
from weft.objects.identity import SERVER_NAME
from weft.protocol.frames import Frame, FrameType, encode_data, encode_frame, encode_hello, receive_frame
from weft.trust.ca import Authority
from weft.trust.tickets import sign_ticket

KEY = b"k" * 32


class ConsoleRuntime(FakeDriver):
    """The fake with consoles as QEMU's have them: per guest a unix socket, and a log file."""

    def __init__(self, folder: Path, host: Host) -> None:
        super().__init__(host)
        self.folder = folder
        self.printed = PrintedHere(self.paths)

    def paths(self, guest_id: str) -> GuestPaths:
        folder = self.folder / guest_id
        folder.mkdir(parents=True, exist_ok=True)
        return GuestPaths(folder, folder)

    def console_log(self, guest_id: str) -> str:
        return str(self.paths(guest_id).console_log)

    def console_socket(self, guest_id: str) -> str:
        return str(self.paths(guest_id).console)

    def print(self, guest_id: str, text: bytes) -> None:
        with open(self.console_log(guest_id), "ab") as file:
            file.write(text)


class Client:
    """One client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, type_: int, data: bytes = b"") -> None:
        for frame in encode_data(type_, data) if data else [encode_frame(type_)]:
            self.writer.write(frame)
            await self.writer.drain()

    async def receive(self) -> Frame | None:
        return await asyncio.wait_for(receive_frame(self.reader), 20)

    async def rest(self) -> tuple[bytes, bytes, Frame | None]:
        """Stdout, stderr, and the frame that ended the stream."""
        out, err = bytearray(), bytearray()
        while True:
            frame = await self.receive()
            if frame is None or frame.type in (FrameType.EXIT, FrameType.ERROR):
                return bytes(out), bytes(err), frame
            (out if frame.type == FrameType.DATA_OUT else err).extend(frame.payload)

    def close(self) -> None:
        self.writer.close()


class GatewayLab:
    """One gateway; nodes and clients come and go."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.folder = folder
        self.authority = Authority(folder, self.clock)
        self.authority.renew_server(["127.0.0.1"])
        self.gateway = Gateway(make_server_tls(folder), KEY, self.clock)
        place = Capacity(cpu=1, memory_bytes=1, disk_bytes=1)
        host = Host("n1", "n1", str(folder), str(folder), "wt", "127.0.0.1", "lo", "weft-test", place)
        self.network = FakeNetwork(host, self.clock)
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[GatewayLab]:
        await self.gateway.listen("127.0.0.1", self.port)
        self.port = self.gateway.ports[0]
        try:
            yield self
        finally:
            await self.gateway.close()

    async def restart(self, functions: Functions | None = None, clients: OpenStreams | None = None) -> None:
        """End the gateway and begin another on the same port."""
        await self.gateway.close()
        self.gateway = Gateway(make_server_tls(self.folder), KEY, self.clock, functions=functions, clients=clients)
        await self.gateway.listen("127.0.0.1", self.port)

    def node_context(self, node_uid: str) -> Context:
        """What a node of that uid connects with."""
        key = self.folder / f"{node_uid}.key"
        certificate = self.folder / f"{node_uid}.crt"
        csr = x509.load_pem_x509_csr(make_node_key(key).encode())
        certificate.write_text(self.authority.sign_node(csr, node_uid))
        return Context(server="https://127.0.0.1", ca=self.authority.ca, certificate=str(certificate), key=str(key))

    @asynccontextmanager
    async def node(
        self, node_uid: str, runtime: Any, guests: list[Envelope], logs: LogCollector | None = None
    ) -> AsyncIterator[dict[str, LocalAllocation]]:
        """A node's agent, as far as the gateway knows it; what it has may be changed."""
        known = {envelope.name: read_allocation(envelope) for envelope in guests}

        def find(name: str) -> LocalAllocation | None:
            return next((w for w in known.values() if name in (w.name, w.uid)), None)

        runtimes = Runtimes({"vm": runtime, "container": runtime})
        streams = Streams(runtimes, self.network, find, node_uid, self.clock, logs=logs)
        tls = make_tls(self.node_context(node_uid))
        control = GatewayConnection(
            Place("127.0.0.1", self.port, SERVER_NAME), tls, node_uid, streams.serve, self.clock
        )
        keeping = asyncio.ensure_future(control.keep())
        try:
            await self.until_connected(node_uid)
            yield known
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def until_connected(self, node_uid: str) -> None:
        for _ in range(6000):
            if node_uid in self.gateway.nodes:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the node never connected")

    def ticket(self, envelope: Envelope, verb: str, given: dict[str, Any] | None = None, **claims: Any) -> str:
        wanted = read_allocation(envelope)
        return sign_ticket(
            KEY,
            {
                "node_uid": wanted.spec.node_uid,
                "allocation": wanted.name,
                "guest_id": wanted.id,
                "verb": verb,
                "input": given or {},
                "expires": self.clock.now() + 60,
                "subject": "ann",
                "nonce": uuid.uuid4().hex,
                **claims,
            },
        )

    async def dial(self, context: Context | None = None) -> Client:
        tls: ssl.SSLContext = make_tls(context or Context(server="https://127.0.0.1", ca=self.authority.ca))
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, server_hostname=SERVER_NAME)
        return Client(reader, writer)

    async def connect(self, ticket: str) -> Client:
        client = await self.dial()
        client.writer.write(encode_hello(role="client", ticket=ticket))
        return client

    async def run(self, envelope: Envelope, *argv: str, stdin: bytes = b"") -> tuple[bytes, bytes, Frame | None]:
        """Run a command with ``stdin``; what ``Client.rest`` gives."""
        client = await self.connect(self.ticket(envelope, "exec", {"argv": list(argv)}))

        async def feed() -> None:
            await client.send(FrameType.DATA_IN, stdin) if stdin else None
            await client.send(FrameType.END_IN)

        feeding = asyncio.ensure_future(feed())
        try:
            return await client.rest()
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            client.close()
