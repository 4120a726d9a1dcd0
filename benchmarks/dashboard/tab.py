"""One open dashboard: a stream over a connection of its own, taken apart no further than needed to see which rows came when."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from typing import cast
from urllib.parse import urlsplit

from weft.client.context import Context

_REVISION = re.compile(rb'"revision":(\d+)')


class Tab(asyncio.Protocol):
    """``seen`` is when each revision of a row had come."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._transport: asyncio.Transport | None = None
        self.seen: dict[int, float] = {}
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
        now = time.perf_counter()
        for revision in _REVISION.findall(data):
            self.seen.setdefault(int(revision), now)

    def connection_lost(self, problem: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionError(f"the connection was lost: {problem}"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def open_tab(context: Context, tls: ssl.SSLContext | None, path: str) -> Tab:
    """A stream that has begun."""
    at = urlsplit(context.server)
    request = f"GET {path} HTTP/1.1\r\nHost: {at.netloc}\r\nAuthorization: Bearer {context.token}\r\n\r\n".encode()
    _, tab = await asyncio.get_running_loop().create_connection(
        lambda: Tab(request),
        at.hostname,
        at.port,
        ssl=tls,
        server_hostname=(context.server_name or at.hostname) if tls else None,
    )
    await tab.answered
    return tab
