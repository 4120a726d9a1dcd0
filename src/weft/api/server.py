"""Serves the doors over TLS: uvicorn, with the peer's name put where handlers see it, and bounds on slow heads."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from weft.api.authenticate import PEER
from weft.contracts.clock import Clock
from weft.objects.errors import InvalidInput, Unavailable

_HEAD_SECONDS = 15.0
_HEAD_BYTES = 64_000
_KEEP_ALIVE_SECONDS = 75
_SHUTDOWN_SECONDS = 3
_GOODBYE_SECONDS = 0.3


class DoorsProtocol(HttpToolsProtocol):
    """One connection. ``scope["extensions"]`` gets the common name of the client's certificate, if it showed one that
    our CA signed."""

    _peer = ""
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.ended = asyncio.Event()
        certificate = transport.get_extra_info("peercert") or {}
        for part in certificate.get("subject", ()):
            for name, value in part:
                if name == "commonName":
                    self._peer = value
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        self.ended.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES + 65536:  # what came with the last piece may be body
                self.send_400_response("the request's head is too long")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {PEER: {"name": self._peer}}
        self._await_head()

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > _HEAD_BYTES:
            raise ValueError("the request's head is too long")
        self._head_done()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._head_done()
        body = msgspec.json.encode(
            {"reason": "invalidInput", "message": f"this is no HTTP request: {msg}", "status": 400, "request_id": ""}
        )
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _await_head(self) -> None:
        self._head_done()
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _head_done(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


class DoorsServer:
    """Serves ``app`` at ``sockets`` until ``close``. Without ``tls`` only to measure: tokens would go about openly."""

    def __init__(
        self, app: ASGIApp, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None, clock: Clock
    ) -> None:
        config = uvicorn.Config(
            app,
            http=DoorsProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config)
        self._sockets = list(sockets)
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return once connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(self._sockets))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise Unavailable("the server ended before it began")
            await self._clock.sleep(0.01)

    async def close(self) -> None:
        """Accept nothing new, let requests in hand end (3 s at most), and return."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals are the process's business

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, without its wait for peers that never answer a TLS goodbye: those idle are let go at once, the
        others once their requests are answered."""
        connections = cast(set[DoorsProtocol], self.server_state.connections)
        for server in self.servers:
            server.close()
        for connection in list(connections):
            connection.shutdown()
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=_SHUTDOWN_SECONDS)
        if connections:
            leaving = [asyncio.create_task(connection.ended.wait()) for connection in list(connections)]
            await asyncio.wait(leaving, timeout=_GOODBYE_SECONDS)
        for connection in list(connections):
            connection.transport.abort()
        await super().shutdown(sockets)


def make_server_tls(chain: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """TLS with our certificate; a client may show one of our CA's, and no other."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_cert_chain(chain, key)
    tls.load_verify_locations(ca)
    tls.verify_mode = ssl.CERT_OPTIONAL
    tls.set_alpn_protocols(["http/1.1"])
    return tls


def parse_address(text: str) -> tuple[str, int]:
    """``127.0.0.1:8443`` or ``[::1]:8443`` as address and port. Raises InvalidInput."""
    host, _, port = text.rpartition(":")
    try:
        address = str(ipaddress.ip_address(host.strip("[]")))
        if not (port.isascii() and port.isdecimal() and 0 <= int(port) <= 65535):
            raise ValueError(port)
    except ValueError:
        raise InvalidInput(
            f"{text!r} is not an address and a port", field="listen", hint="write it like 127.0.0.1:8443"
        ) from None
    return address, int(port)


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
