"""Serves an ASGI application at sockets, over TLS: uvicorn's protocol within bounds, behind a doorkeeper."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any, cast

import msgspec
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from weft.contracts.clock import Clock
from weft.objects.errors import Unavailable
from weft.serving.answer import Refuse
from weft.serving.doorkeeper import Doorkeeper
from weft.serving.protocol import BoundedProtocol
from weft.serving.shares import Shares

LOOK_SECONDS = 1.0
CLOSING_SECONDS = 3.0
GOODBYE_SECONDS = 0.3
_CANCELLED = contextlib.suppress(asyncio.CancelledError)
_NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME


class Bounds(msgspec.Struct, frozen=True):
    """What one server bears; how long it waits is the same for all (``protocol``). One address may have a ``parts``-th of
    the connections, and of the bodies under way."""

    most_connections: int
    most_unwanted_bytes: int  # of a body that was answered before it had come
    most_body_bytes: int = sys.maxsize
    most_held_bytes: int = sys.maxsize  # of all bodies under way together
    parts: int = 1


class HttpServer:
    """``refuse`` words what the server itself turns away (status, sentence). Without ``tls`` only to measure: tokens would go
    about openly. ``dated``: whether answers say when they were given."""

    def __init__(
        self,
        app: ASGIApp,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        clock: Clock,
        bounds: Bounds,
        refuse: Refuse,
        make: Callable[[HttpServer, str], BoundedProtocol] = BoundedProtocol,
        dated: bool = True,
    ) -> None:
        self.sockets, self.clock, self.bounds, self.refuse, self._dated = sockets, clock, bounds, refuse, dated
        self.bodies = Shares(bounds.most_held_bytes, bounds.most_held_bytes // bounds.parts)  # bytes, by who sends them
        self.callers = Shares(bounds.most_connections, bounds.most_connections // bounds.parts)  # connections
        self.now = clock.elapsed()  # as of the last look: near enough for whoever waits
        self.state = ServerState()
        self.config = uvicorn.Config(
            _ending_quietly(app),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        self.config.load()
        self._doorkeeper = Doorkeeper(sockets, tls, lambda who: make(self, who), self.callers, clock)
        self._looking: asyncio.Task[None] | None = None

    @property
    def connections(self) -> set[BoundedProtocol]:
        return cast(set[BoundedProtocol], self.state.connections)

    @property
    def ports(self) -> list[int]:
        return [sock.getsockname()[1] for sock in self.sockets]

    def start(self) -> None:
        """Begin to accept; call on the loop."""
        self._doorkeeper.start()
        self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Take nothing new, let what is under way end (3 s at most), hang up. Whoever idles is let go at once, and nobody's
        TLS goodbye is waited for."""
        self._doorkeeper.close()
        for connection in list(self.connections):
            connection.shutdown()
        if self.state.tasks:
            await asyncio.wait(list(self.state.tasks), timeout=CLOSING_SECONDS)
        if self.connections:
            leaving = [asyncio.create_task(connection.ended.wait()) for connection in list(self.connections)]
            await asyncio.wait(leaving, timeout=GOODBYE_SECONDS)
        for connection in list(self.connections):
            connection.drop()
        for task in list(self.state.tasks):
            task.cancel()
        await asyncio.gather(*self.state.tasks, return_exceptions=True)
        if self._looking is not None:
            self._looking.cancel()

    def make_room(self, newcomer: BoundedProtocol) -> BoundedProtocol:
        """Who gives way, where bodies are more than all may have: one that is still coming, of whoever has most."""
        coming = [found for found in self.connections if found.coming]
        return max(coming, key=lambda found: (self.bodies.held[found.who], found is newcomer), default=newcomer)

    async def _look(self) -> None:
        """End connections that are over their time, and tell the date: one timer for all."""
        while True:
            if self._dated:
                self.state.default_headers = [(b"date", formatdate(self.clock.now(), usegmt=True).encode())]
            self.now = self.clock.elapsed()
            for connection in list(self.connections):
                connection.look()
            await self.clock.sleep(LOOK_SECONDS)


def listen(address: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises Unavailable, saying why."""
    found: Any = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in address:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind((address, port))
    except OSError as problem:
        found.close()
        raise Unavailable(
            f"can't listen at {address} port {port}: {problem.strerror}",
            hint=f"ss -ltnp 'sport = :{port}' shows who has it",
        ) from problem
    made: socket.socket = found
    return made


def make_server_tls(chain: Path, key: Path, ca: Path | None = None) -> ssl.SSLContext:
    """TLS with our certificate. With ``ca`` a client may show one of that CA's, and no other; whether it has ended is for
    whoever asks for it to see, who can say so: a refused handshake is a connection that breaks off."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_cert_chain(chain, key)
    tls.set_alpn_protocols(["http/1.1"])
    if ca is not None:
        tls.load_verify_locations(ca)
        tls.verify_mode = ssl.CERT_OPTIONAL
        tls.verify_flags = ssl.VerifyFlags(tls.verify_flags | _NO_CHECK_TIME)
    return tls


def _ending_quietly(app: ASGIApp) -> ASGIApp:
    """``app``, where what the server's end breaks off is no defect to log."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        with _CANCELLED:
            await app(scope, receive, send)

    return run
