"""One TLS connection to the gateway, as frames: its peer, and reading and writing within limits."""

from __future__ import annotations

import asyncio
import logging
import socket

from weft.objects.errors import Unavailable
from weft.protocol.frames import Frame, drop_rest, receive_frame
from weft.trust.peer import read_peer

log = logging.getLogger("weft.gateway")
KEEPALIVE_SECONDS = 30


class StreamConnection:
    """A client, an agent, or an agent's stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.address = _name_address(writer.get_extra_info("peername"))
        self.peer = read_peer(writer.get_extra_info("ssl_object"))
        self.keeps_sessions = self.counts_printed = self.serves_functions = False  # as the agent's hello declares
        _keep_alive(writer.get_extra_info("socket"))

    @property
    def node_uid(self) -> str | None:
        """The uid of the node whose certificate the peer has shown."""
        return self.peer.node_uid if self.peer is not None else None

    async def receive(self) -> Frame | None:
        """The next frame; None when the peer has closed or is lost. Raises InvalidInput for what is no frame."""
        try:
            return await receive_frame(self.reader)
        except (OSError, Unavailable):
            return None

    async def send(self, frame: bytes) -> bool:
        """Send it, waiting while the peer is slow; False when the peer has gone."""
        try:
            self.writer.write(frame)
            await self.writer.drain()
        except OSError:
            return False
        return True

    async def drain(self) -> None:
        """Read and drop all data until the peer has closed."""
        await drop_rest(self.reader)


def _name_address(peer: object) -> str:
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unknown"


def _keep_alive(sock: socket.socket | None) -> None:
    """A peer that lost its power doesn't close the connection: let the kernel find out."""
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS // 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
