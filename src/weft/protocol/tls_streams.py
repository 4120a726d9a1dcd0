"""TLS connections as a reader and a writer that may be closed at any moment, and still be read to their end.

asyncio doesn't mark a lost TLS connection as closed: ``close`` then drops the transport that its reader and writer use, and
the next call of either fails with AttributeError. So connections are opened and accepted here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

Accepted = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]
LIMIT_BYTES = 65_536  # a reader slows its peer beyond this; it holds twice as much at most


async def open_stream(
    host: str, port: int, tls: ssl.SSLContext, server_name: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to ``host``, whose certificate must be for ``server_name``. Raises OSError."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(LIMIT_BYTES, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, host, port, ssl=tls, server_hostname=server_name)
    return reader, _Writer(transport, protocol, reader, loop)


async def listen_for_streams(
    accepted: Accepted, host: str, port: int, tls: ssl.SSLContext, handshake_seconds: float
) -> asyncio.Server:
    """Accept connections there; each is passed to ``accepted`` once its handshake is done. Raises OSError."""
    loop = asyncio.get_running_loop()

    def make_protocol() -> asyncio.StreamReaderProtocol:
        protocol = asyncio.StreamReaderProtocol(
            asyncio.StreamReader(LIMIT_BYTES, loop),
            lambda reader, writer: accepted(reader, _Writer(writer.transport, protocol, reader, loop)),
            loop,
        )
        return protocol

    return await loop.create_server(make_protocol, host, port, ssl=tls, ssl_handshake_timeout=handshake_seconds)


class _Writer(asyncio.StreamWriter):
    def close(self) -> None:
        if not self.is_closing():
            super().close()
