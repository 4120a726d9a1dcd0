"""The doorkeeper when many clients come at once: handshakes take turns, and one that nobody waits for is not made."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from weft.contracts.clock import SystemClock
from weft.serving import doorkeeper
from weft.serving.answer import Answer
from weft.serving.request import Request
from weft.serving.server import HttpServer, listen, make_server_tls
from weft.serving.shares import Bounds
from weft.trust.ca import Authority

CLIENTS = 40


class Server:
    """Counts the handshakes that it works on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = self.now = self.most = 0
        loop = asyncio.get_running_loop()
        real: Any = loop.connect_accepted_socket

        async def counted(*given: Any, **named: Any) -> Any:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                return await real(*given, **named)
            finally:
                self.now -= 1

        monkeypatch.setattr(loop, "connect_accepted_socket", counted)


async def answer(request: Request) -> Answer:
    return Answer(200, b"here")


def refuse(*_: Any) -> Answer:
    return Answer(500)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """Its port, and what its clients need."""
    authority = Authority(folder, SystemClock())
    tls = make_server_tls(*authority.renew_server(["127.0.0.1"]), authority.ca_path)
    server = HttpServer(answer, [listen("127.0.0.1", 0)], tls, SystemClock(), Bounds(1000, 10**6), refuse)
    server.start()
    try:
        yield server.ports[0], ssl.create_default_context(cadata=authority.ca)
    finally:
        await server.close()


async def ask(port: int, tls: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    try:
        return await reader.readline()
    finally:
        writer.close()


def begin(port: int) -> socket.socket:
    """A client whose handshake has begun, and goes no further."""
    client = socket.create_connection(("127.0.0.1", port))
    tls = ssl.create_default_context()
    tls.check_hostname = False
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        tls.wrap_bio(to_client, to_server, server_hostname="127.0.0.1").do_handshake()
    client.sendall(to_server.read())
    return client


async def test_of_many_clients_that_come_at_once_a_few_are_let_in_at_a_time_and_all_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorkeeper, "TURNS", 2)
    monkeypatch.setattr(doorkeeper, "TURN_SECONDS", 600.0)
    counted = Server(monkeypatch)
    async with serving(tmp_path) as (port, tls):
        answers = await asyncio.gather(*[ask(port, tls) for _ in range(CLIENTS)])
    assert answers == [b"HTTP/1.1 200 OK\r\n"] * CLIENTS
    assert counted.begun == CLIENTS and counted.most <= 2


async def test_slow_clients_give_up_their_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorkeeper, "TURNS", 2)
    monkeypatch.setattr(doorkeeper, "TURN_SECONDS", 0.05)
    monkeypatch.setattr(doorkeeper, "HANDSHAKE_SECONDS", 600.0)
    async with serving(tmp_path) as (port, tls):
        slow = [begin(port) for _ in range(10)]
        assert await asyncio.wait_for(ask(port, tls), 60.0) == b"HTTP/1.1 200 OK\r\n"
        for one in slow:
            one.close()


async def test_a_client_that_left_before_its_turn_costs_no_handshake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorkeeper, "TURNS", 1)
    monkeypatch.setattr(doorkeeper, "TURN_SECONDS", 600.0)
    monkeypatch.setattr(doorkeeper, "HANDSHAKE_SECONDS", 600.0)
    counted = Server(monkeypatch)
    async with serving(tmp_path) as (port, tls):
        first = begin(port)
        while not counted.begun:
            await asyncio.sleep(0.01)
        for one in [begin(port) for _ in range(10)]:
            one.close()
        waiting = asyncio.ensure_future(ask(port, tls))
        first.close()
        assert await waiting == b"HTTP/1.1 200 OK\r\n"
    assert counted.begun == 2
