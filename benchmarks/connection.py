"""One kept HTTPS connection, as cheap for the machine as Python has it, so that a benchmark measures the server."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from weft.client.context import Context
from weft.client.tls import make_tls


class Connection(asyncio.Protocol):
    """Requests one after the other; answers need a Content-Length."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._buffer = bytearray()
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, context: Context, tls: ssl.SSLContext | None = None, source: str | None = None) -> Connection:
        """A connection to the context's server, from the address ``source``; plain where its URL is http."""
        at = urlsplit(context.server)
        secure = at.scheme == "https"
        token = f"Authorization: Bearer {context.token}\r\n" if context.token else ""  # else by its certificate
        head = f" HTTP/1.1\r\nHost: {at.netloc}\r\n{token}".encode()
        _, made = await asyncio.get_running_loop().create_connection(
            lambda: cls(head),
            at.hostname or "",
            at.port or 443,
            ssl=(tls or make_tls(context)) if secure else None,
            server_hostname=context.server_name or at.hostname if secure else None,
            local_addr=(source, 0) if source else None,
        )
        return made

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of the answer."""
        data = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        self._waiting = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("the connection is closed")
        length = b"Content-Length: %d\r\n" % len(data) if data else b""
        self._transport.write(f"{method} {path}".encode() + self._head + length + b"\r\n" + data)
        return await self._waiting

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, problem: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(f"the connection was lost: {problem}"))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(buffer[:end]).lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r", 1)[0])
        if len(buffer) >= end + 4 + length and self._waiting is not None and not self._waiting.done():
            body = bytes(buffer[end + 4 : end + 4 + length])
            del buffer[: end + 4 + length]
            self._waiting.set_result((int(head[9:12]), body))
