"""Published ports on the gateway's machine: each has a listener here that leads to its node.

Follows published ports in the store; logs a port that another program has here, and tries it again. Woken by the store,
connections and datagrams.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Literal

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.contracts.wakeup import Wake
from weft.gateway.published_port.udp import DatagramRelay
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.kinds.published_port import PublishedPortSpec, PublishedPortStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import kind_prefix

log = logging.getLogger("weft.gateway")
CHUNK_BYTES = 64 * 1024
CONNECT_SECONDS = 10.0
RETRY_SECONDS = 5.0
MAX_CONNECTIONS = 1024


class PublishedTarget(msgspec.Struct, frozen=True):
    """The target of a published port: the same port of the node that has the guest."""

    address: str
    port: int
    protocol: Literal["tcp", "udp"] = "tcp"


Key = tuple[Literal["tcp", "udp"], int]  # of a listener: one number may be published for both


def read_target(envelope: Envelope) -> PublishedTarget | None:
    """Read where a published port leads; None for one that leads nowhere yet."""
    spec, status = decode_part(envelope.spec, PublishedPortSpec), decode_part(envelope.status, PublishedPortStatus)
    heaviest = max(
        status.nodes, key=lambda node: node.weight, default=None
    )  # of a service; it splits connections itself
    address = status.node_address or (heaviest.address if heaviest is not None else "")
    return PublishedTarget(address, spec.port, spec.protocol) if address else None


class PortListeners:
    """The listeners on ``address``, one per published port in ``store`` that leads somewhere."""

    def __init__(self, address: str, store: Store, clock: Clock) -> None:
        self._address, self._clock = address, clock
        self._published = PrefixCache(
            store, kind_prefix("publishedport"), of_envelope(read_target), clock, lambda key: self._woken.ring()
        )
        self._servers: dict[Key, asyncio.Server | asyncio.DatagramTransport] = {}
        self._troubled: set[Key] = set()
        self._woken = Wake(clock)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ports(self) -> list[int]:
        """The ports that are listened on now."""
        return sorted({port for _, port in self._servers})

    async def keep(self) -> None:
        """Listen where ports are published, for ever; closes all listeners when cancelled."""
        following = asyncio.ensure_future(self._published.run())
        try:
            while True:
                await self._listen_at_all()
                await self._woken.wait(RETRY_SECONDS)
        finally:
            following.cancel()
            for server in self._servers.values():
                server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(following, *self._tasks, return_exceptions=True)

    async def _listen_at_all(self) -> None:
        wanted: set[Key] = {(target.protocol, target.port) for target in self._published.found.values()}
        for key in self._servers.keys() - wanted:
            self._servers.pop(key).close()
            log.info("port %d/%s is no longer published", key[1], key[0])
        for key in sorted(wanted - self._servers.keys()):
            try:
                self._servers[key] = await self._listen(key)
            except OSError as problem:
                if key not in self._troubled:
                    self._troubled.add(key)
                    protocol, port = key
                    log.warning(
                        "port %d/%s can't be published on %s: %s", port, protocol, self._address, problem.strerror
                    )
            else:
                self._troubled.discard(key)

    async def _listen(self, key: Key) -> asyncio.Server | asyncio.DatagramTransport:
        protocol, port = key
        if protocol == "tcp":
            return await asyncio.start_server(partial(self._accept, port), self._address, port)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: DatagramRelay(partial(self._find_datagram_target, port), self._clock),
            local_addr=(self._address, port),
        )
        return transport

    def _find(self, key: Key) -> PublishedTarget | None:
        return next(
            (target for target in self._published.found.values() if (target.protocol, target.port) == key), None
        )

    def _find_datagram_target(self, port: int) -> tuple[str, int] | None:
        target = self._find(("udp", port))
        return (target.address, target.port) if target is not None else None

    def _accept(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.ensure_future(self._relay(port, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = self._find(("tcp", port))
        try:
            if target is None:
                return
            dialling = asyncio.open_connection(target.address, target.port)
            async with asyncio.timeout(CONNECT_SECONDS):
                far_reader, far_writer = await dialling
            try:
                await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))
            finally:
                far_writer.close()
        except (OSError, TimeoutError) as problem:
            log.debug("published port %d: %s", port, problem)
        finally:
            writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one way; half-close is passed on, and the other way goes on."""
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
