"""Published ports on the gateway's own machine: each leads where its object says, both ways, minding half-closes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from weft.contracts.clock import SystemClock
from weft.contracts.store import Delete, Put
from weft.gateway.published_port.listeners import PortListeners, PublishedTarget, read_target
from weft.kinds.published_port import PublishedNode, PublishedPortSpec, PublishedPortStatus
from weft.objects.envelope import Envelope, encode_envelope, merge_part
from weft.objects.identity import Ref
from weft.store.memory import MemoryStore

HERE = "127.0.0.1"


def find_port() -> int:
    """A port that is free on 127.0.0.1 and 127.0.0.2, so that one can stand for this machine and one for a node."""
    while True:
        with socket.create_server((HERE, 0)) as here, contextlib.suppress(OSError):
            port = int(here.getsockname()[1])
            with socket.create_server(("127.0.0.2", port)):
                return port


def make_port(name: str, target: PublishedTarget) -> Envelope:
    spec = PublishedPortSpec(port=target.port, protocol=target.protocol, target_port=8, workload=Ref("vm", "a", "u"))
    envelope = Envelope(kind="publishedport", name=name, uid=name)
    envelope.spec = merge_part(envelope.spec, spec)
    envelope.status = merge_part(envelope.status, PublishedPortStatus(node_address=target.address or None))
    return envelope


class Published(PortListeners):
    """The listeners, and the store that they follow."""

    def __init__(self, store: MemoryStore, clock: SystemClock) -> None:
        super().__init__(HERE, store, clock)
        self.store = store

    async def put(self, name: str, target: PublishedTarget) -> None:
        envelope = make_port(name, target)
        await self.store.commit([Put(envelope.key, encode_envelope(envelope))])

    async def drop(self, name: str) -> None:
        await self.store.commit([Delete(make_port(name, PublishedTarget("", 1)).key)])


@asynccontextmanager
async def publishing() -> AsyncIterator[Published]:
    clock = SystemClock()
    store = MemoryStore(clock)
    await store.open()
    published_ports = Published(store, clock)
    keeping = asyncio.ensure_future(published_ports.keep())
    try:
        yield published_ports
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await store.close()


@asynccontextmanager
async def guest(port: int) -> AsyncIterator[None]:
    """A node that answers on the port: everything it got, once the other side has ended, backwards."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(-1)
        writer.write(data[::-1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.2", port)
    async with server:
        yield


async def ask(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HERE, port)
    writer.write(data)
    writer.write_eof()
    got = await asyncio.wait_for(reader.read(-1), 60)
    writer.close()
    return got


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never")


async def test_a_published_port_leads_to_its_node_and_back_whatever_the_size() -> None:
    port = find_port()
    async with publishing() as published_ports, guest(port):
        await published_ports.put(f"tcp-{port}", PublishedTarget("127.0.0.2", port))
        await until(lambda: published_ports.ports == [port])
        data = bytes(range(256)) * 8000
        assert await ask(port, data) == data[::-1]


async def test_a_listener_closes_when_its_published_port_goes() -> None:
    one, two = find_port(), find_port()
    async with publishing() as published_ports:
        await published_ports.put("tcp-1", PublishedTarget("127.0.0.2", one))
        await published_ports.put("tcp-2", PublishedTarget("127.0.0.2", two))
        await until(lambda: published_ports.ports == sorted([one, two]))
        await published_ports.drop("tcp-1")
        await until(lambda: published_ports.ports == [two])
        await published_ports.drop("tcp-2")
        await until(lambda: published_ports.ports == [])
        with socket.create_server((HERE, one)), socket.create_server((HERE, two)):
            pass


async def test_closed_listeners_leave_no_task_behind() -> None:
    port, before = find_port(), asyncio.all_tasks()
    async with publishing() as published_ports:
        await published_ports.put("tcp-1", PublishedTarget("127.0.0.2", port))
        await until(lambda: published_ports.ports == [port])
    assert asyncio.all_tasks() == before


async def test_a_port_that_something_else_holds_keeps_no_other_from_being_published() -> None:
    taken, free = find_port(), find_port()
    with socket.create_server((HERE, taken)):
        async with publishing() as published_ports:
            await published_ports.put("tcp-1", PublishedTarget("127.0.0.2", taken))
            await published_ports.put("tcp-2", PublishedTarget("127.0.0.2", free))
            await until(lambda: published_ports.ports == [free])


async def test_a_node_that_doesnt_answer_closes_the_connection() -> None:
    port = find_port()
    async with publishing() as published_ports:
        await published_ports.put("tcp-1", PublishedTarget("127.0.0.2", port))
        await until(lambda: published_ports.ports == [port])
        assert await ask(port, b"hello") == b""


def test_only_what_leads_somewhere_is_offered() -> None:
    for target in (PublishedTarget("10.0.0.1", 80), PublishedTarget("10.0.0.1", 80, "udp")):
        assert read_target(make_port("x", target)) == target
    assert read_target(make_port("x", PublishedTarget("", 80))) is None
    service = make_port("x", PublishedTarget("", 80))
    nodes = [PublishedNode(address="10.0.0.1", weight=300), PublishedNode(address="10.0.0.2", weight=700)]
    service.status = merge_part(service.status, PublishedPortStatus(address="10.20.0.9", nodes=nodes))
    assert read_target(service) == PublishedTarget("10.0.0.2", 80)


class Resolver(asyncio.DatagramProtocol):
    """A guest's UDP server: each question comes back backwards, with the number of clients it saw."""

    def __init__(self) -> None:
        self.clients: set[object] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.clients.add(addr)
        self.transport.sendto(data[::-1], addr)


async def test_a_published_udp_port_keeps_its_clients_apart_and_follows_the_guest() -> None:
    port, loop = find_port(), asyncio.get_running_loop()
    first, second = Resolver(), Resolver()
    near, _ = await loop.create_datagram_endpoint(lambda: first, local_addr=("127.0.0.2", port))
    far, _ = await loop.create_datagram_endpoint(lambda: second, local_addr=("127.0.0.3", port))
    clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]

    async def ask_each(*numbers: int) -> list[bytes]:
        for number in numbers:
            await loop.sock_sendto(clients[number], f"who is {number}".encode(), (HERE, port))
        return [await asyncio.wait_for(loop.sock_recv(clients[number], 2000), 60) for number in numbers]

    try:
        for client in clients:
            client.setblocking(False)
        async with publishing() as published_ports:
            await published_ports.put("udp-1", PublishedTarget("127.0.0.2", port, "udp"))
            await until(lambda: published_ports.ports == [port])
            assert await ask_each(0, 1, 2, 0) == [b"0 si ohw", b"1 si ohw", b"2 si ohw", b"0 si ohw"]
            assert (len(first.clients), len(second.clients)) == (3, 0)
            await published_ports.put("udp-1", PublishedTarget("127.0.0.3", port, "udp"))
            await until(lambda: next(iter(published_ports._published.found.values())).address == "127.0.0.3")
            assert await ask_each(1) == [b"1 si ohw"]
            assert len(second.clients) == 1
            await published_ports.drop("udp-1")
            await until(lambda: published_ports.ports == [])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind((HERE, port))  # the port is free again
    finally:
        for client in clients:
            client.close()
        near.close()
        far.close()
