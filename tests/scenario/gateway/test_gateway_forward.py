"""A guest's TCP port through the gateway: as frames for the command line, as a web socket for browsers."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.scenario.agent_lab import NODE_UID, Lab
from tests.scenario.gateway.test_gateway_streams import WEB, plan_guest
from tests.scenario.gateway_lab import Client, GatewayLab

from weft.agent.state.allocation import read_allocation
from weft.drivers.runtime.fake.driver import FakeDriver
from weft.protocol.frames import FrameType

PORT = 2222


@asynccontextmanager
async def echoing(gateway: GatewayLab) -> AsyncIterator[None]:
    """A guest that sends back what it gets, and ends when its client has."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        (nic,) = gateway_nics()
        gateway.network.wire.listeners[nic, PORT] = server.sockets[0].getsockname()[1]
        yield


def gateway_nics() -> list[str]:
    return [nic.address for nic in read_allocation(WEB).spec.nics]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayLab]:
    async with GatewayLab(tmp_path).serving() as lab:
        yield lab


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[FakeDriver]:
    driver = FakeDriver(Lab(tmp_path / "node").host)
    await driver.start(plan_guest())
    yield driver
    await driver.close()


async def test_two_megabytes_go_to_a_guests_port_and_back(gateway: GatewayLab, runtime: FakeDriver) -> None:
    data = os.urandom(2_000_000)
    async with gateway.node(NODE_UID, runtime, [WEB]), echoing(gateway):
        client = await gateway.connect(gateway.ticket(WEB, "forward", {"port": PORT}))

        async def feed() -> None:
            await client.send(FrameType.DATA_IN, data)
            await client.send(FrameType.END_IN)

        feeding = asyncio.ensure_future(feed())
        out, _, end = await client.rest()
        await feeding
        assert out == data and end is not None and end.json() == {"code": 0}
        client.close()


async def test_a_port_nobody_listens_on_is_told_by_address(gateway: GatewayLab, runtime: FakeDriver) -> None:
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await gateway.connect(gateway.ticket(WEB, "forward", {"port": 81}))
        end = (await client.rest())[2]
        assert end is not None and end.error().token == "portUnreachable"
        assert f"{gateway_nics()[0]}:81" in end.error().message
        client.close()


async def test_patience_outlasts_a_guest_that_still_boots(gateway: GatewayLab, runtime: FakeDriver) -> None:
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client = await gateway.connect(gateway.ticket(WEB, "forward", {"port": PORT, "patience": 20}))
        await asyncio.sleep(0.2)
        async with echoing(gateway):
            await client.send(FrameType.DATA_IN, b"late")
            frame = await client.receive()
            assert frame is not None and frame.payload == b"late"
        client.close()


async def upgrade(gateway: GatewayLab, ticket: str, path: str = "/v1/stream", more: str = "") -> tuple[Client, bytes]:
    client = await gateway.dial()
    key = base64.b64encode(os.urandom(16)).decode()
    client.writer.write(
        f"GET {path}?ticket={quote(ticket)} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{more}"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: binary\r\n\r\n".encode()
    )
    return client, await client.reader.readuntil(b"\r\n\r\n")


def mask(payload: bytes, opcode: int = 2) -> bytes:
    key = b"\x01\x02\x03\x04"
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + key + bytes(b ^ key[i % 4] for i, b in enumerate(payload))


async def read_message(client: Client) -> tuple[int, bytes]:
    first, second = await asyncio.wait_for(client.reader.readexactly(2), 20)
    length = second & 0x7F
    if length == 126:
        length = int.from_bytes(await client.reader.readexactly(2), "big")
    return first & 0x0F, await client.reader.readexactly(length)


async def test_a_browser_reaches_the_same_by_web_socket(gateway: GatewayLab, runtime: FakeDriver) -> None:
    async with gateway.node(NODE_UID, runtime, [WEB]), echoing(gateway):
        client, answer = await upgrade(gateway, gateway.ticket(WEB, "forward", {"port": PORT}))
        assert answer.startswith(b"HTTP/1.1 101") and b"Sec-WebSocket-Protocol: binary" in answer
        client.writer.write(mask(b"hello") + mask(b"ping", 9))
        assert {await read_message(client), await read_message(client)} == {(2, b"hello"), (10, b"ping")}
        client.writer.write(mask(b"x" * 5000))
        got = b""
        while len(got) < 5000:
            got += (await read_message(client))[1]
        assert got == b"x" * 5000
        client.writer.write(mask(b"", 8))
        assert (await read_message(client))[0] == 8
        client.close()


async def test_a_page_of_somebody_else_opens_no_web_socket_and_uses_up_no_ticket(
    gateway: GatewayLab, runtime: FakeDriver
) -> None:
    async with gateway.node(NODE_UID, runtime, [WEB]), echoing(gateway):
        ticket = gateway.ticket(WEB, "forward", {"port": PORT})
        client, answer = await upgrade(gateway, ticket, more="Origin: https://evil.example\r\n")
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"--allow-origin" in await client.reader.read(-1)
        client.close()
        client, answer = await upgrade(gateway, ticket, more="Origin: https://x\r\n")
        assert answer.startswith(b"HTTP/1.1 101")
        client.close()


async def test_a_web_socket_hears_why_it_ends(gateway: GatewayLab, runtime: FakeDriver) -> None:
    async with gateway.node(NODE_UID, runtime, [WEB]):
        client, _ = await upgrade(gateway, gateway.ticket(WEB, "forward", {"port": 81}))
        opcode, words = await read_message(client)
        assert opcode == 8 and words[2:].startswith(b"portUnreachable")
        client.close()
        client, _ = await upgrade(gateway, "no-ticket")
        opcode, words = await read_message(client)
        assert opcode == 8 and b"ticket" in words
        client.close()


async def test_a_browser_without_a_ticket_gets_a_page_that_says_so(gateway: GatewayLab) -> None:
    client, answer = await upgrade(gateway, "x", "/elsewhere")
    assert answer.startswith(b"HTTP/1.1 404")
    client.close()
    client = await gateway.dial()
    client.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 426")
    client.close()
