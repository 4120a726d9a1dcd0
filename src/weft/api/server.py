"""Serves the doors over TLS: uvicorn, with the peer's name put where handlers see it, and bounds on what is slow or never ends:
heads, readers, bodies that nobody wants, and requests sent ahead."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from weft.api.authenticate import PEER
from weft.api.doorkeeper import Doorkeeper
from weft.contracts.clock import Clock
from weft.objects.errors import InvalidInput, Unavailable

_NOBODY: Mapping[object, object] = {"name": ""}
_NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME
_HEAD_SECONDS = 15.0
_HEAD_BYTES = 64_000
_KEEP_ALIVE_SECONDS = 75
_SHUTDOWN_SECONDS = 3
_GOODBYE_SECONDS = 0.3
_READER_SECONDS = 30.0  # for a reader to take what is buffered for him
_MOST_UNWANTED_BYTES = 1_000_000  # of a body that was answered before it had come
_MOST_AHEAD = 64  # requests sent before the answer to the first


class DoorsProtocol(HttpToolsProtocol):
    """One connection. ``scope["extensions"]`` gets the common name of the client's certificate, if it showed one that
    our CA signed."""

    _peer: Mapping[object, object] = _NOBODY
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None
    _unwanted_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.ended = asyncio.Event()
        if certificate := transport.get_extra_info("peercert"):
            self._peer = _describe_peer(certificate)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        self.resume_writing()
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
        self._unwanted_bytes = 0
        self.scope["extensions"] = {PEER: dict(self._peer)}
        self._await_head()

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > _HEAD_BYTES:
            raise ValueError("the request's head is too long")
        self._head_done()
        super().on_headers_complete()

        if len(self.pipeline) > _MOST_AHEAD:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle.response_complete:
            self._unwanted_bytes += len(body)
            if self._unwanted_bytes > _MOST_UNWANTED_BYTES:
                self.transport.close()

    def on_message_complete(self) -> None:
        if self.cycle.response_complete:
            self._head_done()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.cycle.more_body:
            self._await_head()  # the rest of the body may come, but not for ever
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader_timer is None:
            self._reader_timer = self.loop.call_later(_READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def send_400_response(self, msg: str) -> None:
        self._head_done()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # in the middle of an answer there is no other
            return
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
        self._server = _Server(config, sockets, tls, clock)
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return once connections are accepted."""
        self._task = asyncio.create_task(self._server.serve())
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
    def __init__(
        self, config: uvicorn.Config, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None, clock: Clock
    ) -> None:
        super().__init__(config)
        self._doorkeeper = Doorkeeper(sockets, tls, self._make_protocol, self.server_state.connections, clock)

    def _make_protocol(self) -> DoorsProtocol:
        return DoorsProtocol(self.config, self.server_state, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals are the process's business

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.servers = []  # the doorkeeper listens
        self._doorkeeper.start()
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, without its wait for peers that never answer a TLS goodbye: those idle are let go at once, the
        others once their requests are answered."""
        connections = cast(set[DoorsProtocol], self.server_state.connections)
        self._doorkeeper.close()
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
    """TLS with our certificate; a client may show one of our CA's, and no other. Whether that has ended is looked at by
    ``authenticate``, which can say so: a refused handshake is a connection that breaks off."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_cert_chain(chain, key)
    tls.load_verify_locations(ca)
    tls.verify_mode = ssl.CERT_OPTIONAL
    tls.verify_flags = ssl.VerifyFlags(tls.verify_flags | _NO_CHECK_TIME)
    tls.set_alpn_protocols(["http/1.1"])
    return tls


def _describe_peer(certificate: dict[str, Any]) -> dict[object, object]:
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    begins, ends = (ssl.cert_time_to_seconds(certificate[when]) for when in ("notBefore", "notAfter"))
    return {"name": names[-1] if names else "", "begins": begins, "ends": ends}


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
