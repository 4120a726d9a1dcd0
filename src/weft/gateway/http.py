"""HTTP/1.1 for those who invoke functions: small, and bounded in whatever a stranger may make it hold or wait for.

One request of a connection is answered at a time; what was sent ahead waits, and then nothing more is read. An answer
goes out in one piece. A connection that idles, whose request doesn't get on, or whose answer isn't taken, is ended.
"""

from __future__ import annotations

import asyncio
import http
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, cast

import httptools
import msgspec

from weft.contracts.clock import Clock
from weft.gateway.shares import Shares, who_is

log = logging.getLogger("weft.gateway")
IDLE_SECONDS = 75.0
HEAD_SECONDS = 15.0
BODY_SECONDS = 30.0  # for each 64 KiB of it
READER_SECONDS = 30.0
LINGER_SECONDS = 10.0
MOST_DROPPED_BYTES = 64 * 2**20
LOOK_SECONDS = 1.0
CLOSING_SECONDS = 3.0
HANDSHAKE_SECONDS = 10.0
HEAD_BYTES = 65_536
MOST_HEADERS = 200
PIECE_BYTES = 65_536
MOST_AHEAD = 16
MOST_CONNECTIONS = 2048
MOST_HELD_BYTES = 256 * 2**20  # of all bodies under way together
PARTS = 4  # one address may have this part of the connections, and of the bodies
_STATUS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus if status >= 200
}


class Request(msgspec.Struct):
    """``path`` and ``query`` are as they came on the wire, ASCII; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, list[str]]
    body: bytes
    address: str
    keep_alive: bool = True

    def header(self, name: str) -> str:
        """The first of that name; "" if there is none."""
        found = self.headers.get(name)
        return found[0] if found else ""


class Answer(msgspec.Struct):
    """``headers`` beside Content-Length and Connection, which the server sets; they were checked for line breaks."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Awaitable[Answer]]
Refuse = Callable[[int, str], Answer]


class HttpServer:
    """Answers with ``handle``; ``refuse`` words what the server itself turns away (status, sentence)."""

    def __init__(self, handle: Handler, refuse: Refuse, clock: Clock, most_body_bytes: int) -> None:
        self.handle, self.refuse, self.clock, self.most_body_bytes = handle, refuse, clock, most_body_bytes
        self.connections: set[_Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.bodies = Shares(MOST_HELD_BYTES, MOST_HELD_BYTES // PARTS)  # bytes, by who sends them
        self.callers = Shares(MOST_CONNECTIONS, MOST_CONNECTIONS // PARTS)  # connections
        self.closing = False
        self._servers: list[asyncio.Server] = []
        self._looking: asyncio.Task[None] | None = None

    @property
    def ports(self) -> list[int]:
        return [sock.getsockname()[1] for server in self._servers for sock in server.sockets]

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Take connections there. Raises OSError when that can't be had."""
        loop = asyncio.get_running_loop()
        more: dict[str, Any] = {} if tls is None else {"ssl_handshake_timeout": HANDSHAKE_SECONDS}
        self._servers.append(
            await loop.create_server(lambda: _Connection(self), host, port, ssl=tls, backlog=512, **more)
        )
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look())

    async def close(self) -> None:
        """Take nothing new, let what is under way end (3 s at most), hang up."""
        self.closing = True
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.end(at_once=False)
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=CLOSING_SECONDS)
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for connection in list(self.connections):
            connection.end(at_once=True)
        if self._looking is not None:
            self._looking.cancel()

    def make_room(self, newcomer: _Connection) -> _Connection:
        """Who gives way, where bodies are more than all may have: one that is still coming, of whoever has most."""
        coming = [found for found in self.connections if found.coming]
        return max(coming, key=lambda found: (self.bodies.held[found.who], found is newcomer), default=newcomer)

    async def _look(self) -> None:
        """End connections that are over their time: one timer for all."""
        while True:
            await self.clock.sleep(LOOK_SECONDS)
            now = self.clock.elapsed()
            for connection in [found for found in self.connections if found.due < now]:
                connection.overdue()


class _Connection(asyncio.Protocol):
    """``due``: when it is ended unless it gets on (``clock.elapsed()``); ``coming``: bytes of a body whose end isn't here."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self.due = float("inf")
        self._waiting: list[Request] = []
        self._working = self._paused = self._refused = False
        self._held = self._head_bytes = self._progress = self._dropped = 0
        self._in_body = False
        self._body: list[bytes] = []
        self.coming = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of its own class
        server = self._server
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if isinstance(peer, tuple) else ""
        self.who = who_is(self._address)
        server.connections.add(self)
        server.callers.take(self.who, 1)
        if server.closing or server.callers.is_full or server.callers.is_too_much(self.who):
            self._refused = True
            self._transport.abort()
            return
        self._parser = httptools.HttpRequestParser(self)
        self._wait(IDLE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.callers.give_back(self.who, 1)
        self._release(self._held)
        self._waiting.clear()

    def give_way(self) -> None:
        """Let go of the body that is coming."""
        self._body.clear()
        self._release(self.coming)
        self.coming = 0
        self._refuse(503, "too much is under way here just now")

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._drop(len(data))
            return
        if not self._in_body:
            if not self._head_bytes:
                self._wait(HEAD_SECONDS)
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES + 262_144:  # what comes with the last piece of a head may be body
                self._refuse(431, "the request's head is too long")
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "no other protocol is spoken here")
        except httptools.HttpParserError as problem:
            if not self._refused:
                self._refuse(400, f"this is no HTTP request: {problem}")

    def eof_received(self) -> bool:
        return bool(self._waiting)  # who has said all may still hear the answer

    def pause_writing(self) -> None:
        self._paused = True
        self._wait(READER_SECONDS)

    def resume_writing(self) -> None:
        self._paused = False
        self._rest()

    # What the parser finds.

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: dict[str, list[str]] = {}
        self._body = []
        self.coming = self._header_bytes = self._header_count = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        self._header_count += 1
        if self._header_bytes > HEAD_BYTES or self._header_count > MOST_HEADERS:
            self._refuse(431, "the request's head is too long")
            raise ValueError("head")
        self._headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        headers = self._headers
        if len(self._url) > HEAD_BYTES:
            self._refuse(414, "the request's address is too long")
            raise ValueError("address")
        length = headers.get("content-length")
        most = self._server.most_body_bytes
        if length and int(length[0]) > most:
            self._refuse(413, f"the request's body has {length[0]} bytes: at most {most}")
            raise ValueError("body")
        self._in_body = True
        self._progress = 0
        if length or "transfer-encoding" in headers:
            self._wait(BODY_SECONDS)
            if headers.get("expect", [""])[0].lower() == "100-continue" and not self._waiting:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        server = self._server
        self._body.append(body)
        self.coming += len(body)
        self._held += len(body)
        server.bodies.take(self.who, len(body))
        if self.coming > server.most_body_bytes:
            self._refuse(413, f"the request's body has more than {server.most_body_bytes} bytes")
            raise ValueError("body")
        if server.bodies.is_too_much(self.who):
            self._refuse(503, "too much of this address is under way here just now")
            raise ValueError("busy")
        if server.bodies.is_full:
            loser = server.make_room(self)
            loser.give_way()
            if loser is self:
                raise ValueError("busy")
        if self.coming - self._progress >= PIECE_BYTES:
            self._progress = self.coming
            self._wait(BODY_SECONDS)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._head_bytes = self.coming = 0
        try:
            path, _, query = self._url.decode("ascii").partition("?")
            if not path.startswith("/"):
                raise ValueError(path)
        except ValueError:
            self._refuse(400, "the request's address is not an ASCII path")
            raise
        self._waiting.append(
            Request(
                self._parser.get_method().decode(),
                path,
                query,
                self._headers,
                self._body[0] if len(self._body) == 1 else b"".join(self._body),
                self._address,
                self._parser.should_keep_alive(),
            )
        )
        self.due = float("inf")
        if len(self._waiting) > MOST_AHEAD:
            self._refuse(400, "too many requests were sent ahead")
            raise ValueError("ahead")
        if self._working:
            self._transport.pause_reading()  # enough is here; with nothing ahead it goes on, to hear when the caller goes
        else:
            self._working = True
            task = asyncio.get_running_loop().create_task(self._work())
            self._server.tasks.add(task)
            task.add_done_callback(self._server.tasks.discard)

    async def _work(self) -> None:
        """Answer what waits, in order."""
        while self._waiting:
            request = self._waiting[0]
            try:
                answer = await self._server.handle(request)
            except Exception:  # a defect costs one answer
                log.exception("%s %s", request.method, request.path[:200])
                answer = self._server.refuse(500, "internal error")
            if self._transport.is_closing():
                break
            self._waiting.pop(0)
            self._release(len(request.body))
            stays = request.keep_alive and not self._server.closing and not self._refused
            self._write(answer, stays, with_body=request.method != "HEAD")
            if not stays:
                self._hang_up()
                break
        self._working = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._rest()

    def _write(self, answer: Answer, stays: bool, with_body: bool = True) -> None:
        parts = [_STATUS.get(answer.status) or f"HTTP/1.1 {answer.status} Status\r\n".encode()]
        parts += [f"{name}: {value}\r\n".encode("latin-1", "replace") for name, value in answer.headers]
        if answer.status not in (204, 304):
            parts.append(b"content-length: %d\r\n" % len(answer.body))
        parts.append(b"\r\n" if stays else b"connection: close\r\n\r\n")
        if with_body and answer.status not in (204, 304):
            parts.append(answer.body)
        self._transport.write(b"".join(parts))

    def _refuse(self, status: int, message: str) -> None:
        """Say so and hang up, unless there is an answer to come first."""
        if self._refused:
            return
        self._refused = True
        if self._working:
            return  # the answer under way ends the connection
        self._write(self._server.refuse(status, message), stays=False)
        if status in (413, 503):  # its sender reads no answer before all of it is gone
            self._wait(LINGER_SECONDS)
        else:
            self._hang_up()

    def _drop(self, count: int) -> None:
        """So much more of what was refused has come."""
        self._dropped += count
        if self._dropped > MOST_DROPPED_BYTES:
            self._hang_up()

    def end(self, at_once: bool) -> None:
        """Hang up: at once, or if nothing is being answered."""
        if at_once:
            self._transport.abort()
        elif not self._working:
            self._hang_up()

    def overdue(self) -> None:
        if not self._working or self._paused:
            self._transport.abort()

    def _hang_up(self) -> None:
        if not self._transport.is_closing():  # one of asyncio's for TLS that is closed twice can't be aborted any more
            self._transport.close()

    def _release(self, count: int) -> None:
        self._held -= count
        if count:
            self._server.bodies.give_back(self.who, count)

    def _rest(self) -> None:
        if not self._working:
            self._wait(IDLE_SECONDS)

    def _wait(self, seconds: float) -> None:
        self.due = self._server.clock.elapsed() + seconds
