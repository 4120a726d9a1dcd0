"""The gateway against strangers: whatever comes without a ticket ends in time, quietly, and costs the others nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.scenario.gateway.test_gateway_forward import mask
from tests.scenario.gateway_lab import GatewayLab

from weft.gateway import gateway as at_gateway
from weft.gateway.stream.connection import StreamConnection
from weft.gateway.stream.websocket import WebSocket


@pytest.fixture
async def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GatewayLab]:
    monkeypatch.setattr(at_gateway, "HELLO_SECONDS", 0.5)
    monkeypatch.setattr(at_gateway, "LINGER_SECONDS", 0.5)
    async with GatewayLab(tmp_path).serving() as lab:
        yield lab


UPGRADE = b"Host: x\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000,
        b"GET /\r\n\r\n",
        b"GET //[ HTTP/1.1\r\n" + UPGRADE,
        b"GET /v1/stream?ticket=%ff%00 HTTP/1.1\r\n" + UPGRADE,
        b"GET /v1/stream?" + b"&".join(b"a=b" for _ in range(3000)) + b" HTTP/1.1\r\n" + UPGRADE,
        b"GET /v1/stream?ticket=" + b"x" * 20_000 + b" HTTP/1.1\r\n" + UPGRADE,
        b"POST / HTTP/1.1\r\n\r\n",
        b"\x01\x00\x00\x00\x02[]",
        b"\x01\x00\x00\x00\x02\xff\xff",
        b"\x01\x7f\xff\xff\xff",
        b"\x01\x00\x00\x00\x0e" + b'{"role":[1,2]}',
        b"\x01\x00\x00\x00\x04null",
        b"\x01\x00\x01\x86\xa0" + b"[" * 100_000,
        os.urandom(5000),
    ],
)
async def test_whatever_a_stranger_says_ends_in_time_and_is_no_defect(
    gateway: GatewayLab, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    with caplog.at_level(logging.ERROR):
        client = await gateway.dial()
        client.writer.write(said)
        await asyncio.wait_for(client.reader.read(-1), 15)
        client.close()
    assert caplog.records == []


async def test_a_web_sockets_message_of_exabytes_is_taken_piece_by_piece() -> None:
    reader = asyncio.StreamReader()
    connection = StreamConnection.__new__(StreamConnection)
    connection.reader, connection.writer = reader, _Nowhere()  # type: ignore[assignment]
    socket = WebSocket(connection)
    reader.feed_data(b"\x82\xff" + (2**62).to_bytes(8, "big") + b"\1\2\3\4" + b"x" * 300_000)
    for _ in range(4):
        frame = await asyncio.wait_for(socket.receive(), 60)
        assert frame is not None and 0 < len(frame.payload) <= 65536


async def test_pieces_of_a_message_keep_their_order_and_their_mask() -> None:
    reader = asyncio.StreamReader()
    connection = StreamConnection.__new__(StreamConnection)
    connection.reader, connection.writer = reader, _Nowhere()  # type: ignore[assignment]
    socket = WebSocket(connection)
    data = os.urandom(65536 * 2 + 4097)
    first, rest = data[:50_001], data[50_001:]
    reader.feed_data(mask(first, 0))
    key = b"\5\6\7\x08"
    reader.feed_data(
        b"\x82\xff" + len(rest).to_bytes(8, "big") + key + bytes(b ^ key[i % 4] for i, b in enumerate(rest))
    )
    reader.feed_eof()
    got = b""
    while (frame := await socket.receive()) is not None:
        got += frame.payload
    assert got == data


class _Nowhere:
    """A writer for who only reads."""

    def get_extra_info(self, name: str) -> object:
        return None

    def write(self, data: bytes) -> None:
        pass

    async def drain(self) -> None:
        pass
