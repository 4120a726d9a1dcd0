"""One watch over a connection of its own, taken apart no further than needed to see an event come."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

from weft.client.context import Context


class Watcher(asyncio.Protocol):
    """Calls ``on_event`` with the time at which a put event had come whole."""

    def __init__(self, request: bytes, on_event: Callable[[float], None]) -> None:
        self._request, self._on_event = request, on_event
        self._transport: asyncio.Transport | None = None
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.answered.done():
            if not data.startswith(b"HTTP/1.1 200"):
                self.answered.set_exception(ConnectionError(data[:300].decode(errors="replace")))
                return
            self.answered.set_result(None)
        if b'{"type":"put"' in data:
            self._on_event(time.perf_counter())

    def connection_lost(self, problem: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionError(f"the connection was lost: {problem}"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def watch(
    context: Context,
    tls: ssl.SSLContext | None,
    path: str,
    on_event: Callable[[float], None],
    source: str | None = None,
) -> Watcher:
    """A watch that has begun, from the address ``source``."""
    at = urlsplit(context.server)
    token = f"Authorization: Bearer {context.token}\r\n" if context.token else ""  # else by its certificate
    request = f"GET {path} HTTP/1.1\r\nHost: {at.netloc}\r\n{token}\r\n".encode()
    _, watcher = await asyncio.get_running_loop().create_connection(
        lambda: Watcher(request, on_event),
        at.hostname or "",
        at.port or 443,
        ssl=tls,
        server_hostname=(context.server_name or at.hostname) if tls else None,
        local_addr=(source, 0) if source else None,
    )
    await watcher.answered
    return watcher
