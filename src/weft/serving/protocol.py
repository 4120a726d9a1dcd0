"""One connection: HTTP/1.1 over httptools' parser. Ends a connection that idles, whose request stalls or whose answer isn't read,
and refuses what is too long or too large. Woken by incoming bytes, and by the server's ``check_time``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import aclosing
from typing import Any, Protocol, cast

import httptools

from weft.serving.answer import Answer, Answers, Refuse
from weft.serving.request import BodyLost, Request
from weft.serving.shares import Bounds, Shares
from weft.trust.peer import read_peer

IDLE_SECONDS = 75.0
HEAD_SECONDS = 15.0
BODY_SECONDS = 30.0  # for each 64 KiB of it
READER_SECONDS = 30.0  # for the client to read what is buffered
LINGER_SECONDS = 15.0  # for the rest of a body that was answered already
HEAD_BYTES = 65_536
MOST_HEADERS = 200
MOST_AHEAD = 64  # requests sent before the answer to the first
# Bytes are written in such pieces, each after the one before was read: for as long as it lasts, a TLS connection keeps buffers
# as large as the largest piece that ever went through it. The parser gets its input in such pieces too.
PIECE_BYTES = 65_536
_log = logging.getLogger("weft.serving")


class Server(Protocol):
    """The needs of a connection from its server; see ``HttpServer``."""

    answer: Answers
    refuse: Refuse
    bounds: Bounds
    bodies: Shares
    callers: Shares
    connections: set[HttpProtocol]
    leaving: set[asyncio.Task[None]]
    date: str
    now: float

    def choose_to_refuse(self, newcomer: HttpProtocol) -> HttpProtocol:
        """The connection to refuse when all bodies together exceed their bound."""


class HttpProtocol(asyncio.Protocol):
    is_in = False  # whether its TLS handshake is done

    def __init__(self, server: Server, who: str) -> None:
        self.who = who  # the client, as ``Shares`` counts it
        self.ended = asyncio.Event()
        self.task: asyncio.Task[None] | None = None  # answers the current request
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._newest: Request | None = None  # its head or body is arriving
        self._first: Request | None = None  # the one being answered
        self._queue: deque[Request] = deque()  # those after it
        self._in_head = self._in_body = self._is_reading = False
        self._refused = False  # further input is ignored
        self._is_last = False  # no request after those at hand is answered
        self._quiet = 0  # bytes since the parser's last complete item: a head, a piece of a body
        self._unwanted = 0  # bytes that nobody reads
        self._drained: asyncio.Future[None] | None = None  # done once the client has read the buffer
        self._progress_at = 0.0

    @property
    def coming(self) -> int:
        """Bytes so far of a body that is still arriving."""
        return self._newest.came if self._in_body and self._newest is not None else 0

    # Called by the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._address, self._host = (
            str((transport.get_extra_info(end) or ("",))[0]) for end in ("peername", "sockname")
        )
        self._peer = read_peer(transport.get_extra_info("ssl_object"))
        self._server.connections.add(self)
        self.is_in = self._is_reading = True
        self._get_on()

    def connection_lost(self, problem: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.callers.give_back(self.who, 1)
        self._drop_queue()
        for request in (self._newest, self._first):
            if request is not None:
                self._give_back(request)
        if self._in_body and self._newest is not None:
            self._newest.drop()
        self.resume_writing()
        if self.task is not None and self._first is not None:
            self._server.leaving.add(self.task)
            self.task.add_done_callback(self._server.leaving.discard)
            if self._first.begun:
                self.task.cancel()
        self._parser = None  # ends the reference cycle
        self.ended.set()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._drop(len(data))
            return
        if not self._in_body:
            self._begin_head()
        try:
            for start in range(0, len(data), PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                self._quiet += len(piece)
                self._parser.feed_data(piece)
                if self._quiet > 2 * HEAD_BYTES:
                    self.refuse(431, "the request's head is too long")
                    return
        except httptools.HttpParserUpgrade:
            self.refuse(400, "upgrades to another protocol are not supported")
        except httptools.HttpParserError as problem:
            self.refuse(400, f"this is not an HTTP request: {problem}")
        self._answer_next()

    def pause_writing(self) -> None:
        self._get_on()
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
        self._get_on()

    # Called by the parser

    def on_message_begin(self) -> None:
        self._newest = Request(self._address, self._host, self._peer, self._pull)
        self._url = b""
        self._unwanted = 0
        if not self._in_head:  # behind another request
            self._begin_head()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._newest is not None and not self._in_body:  # else it is a trailer's
            self._newest.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        request = self._newest
        if request is None or self._is_last:
            self._refused = True
            raise ValueError("this connection has had its last request")
        if len(self._url) > HEAD_BYTES:
            self._stop(414, "the request's address is too long")
        headers = request.headers
        if len(headers) > MOST_HEADERS or (
            self._quiet > HEAD_BYTES and sum(len(name) + len(value) for name, value in headers) > HEAD_BYTES
        ):
            self._stop(431, "the request's head is too long")
        most = self._server.bounds.most_body_bytes
        for name, value in headers:
            if name == b"content-length" and int(value) > most:
                self._stop(413, f"the request's body has {int(value)} bytes: at most {most}")
            elif name == b"expect":
                request.expects = value.lower() == b"100-continue"
        request.method = self._parser.get_method().decode("ascii")
        request.is_kept = self._parser.should_keep_alive() and self._parser.get_http_version() != "1.0"
        try:
            request.path, request.query = _split(self._url)
        except (UnicodeDecodeError, httptools.HttpParserError):
            self._stop(400, "the request's address is not an ASCII path")
        if len(self._queue) > MOST_AHEAD:
            self._stop(400, "too many requests were sent ahead")
        self._queue.append(request)
        self._in_head, self._in_body, self._quiet = False, True, 0
        self._get_on()

    def on_body(self, body: bytes) -> None:
        self._quiet = 0
        request = self._newest
        if request is None or request.answered:
            self._drop(len(body))
            return
        server = self._server
        request.put(body)
        server.bodies.take(self.who, len(body))
        if request.came > server.bounds.most_body_bytes:
            self._stop(413, f"the request's body has more than {server.bounds.most_body_bytes} bytes")
        if server.bodies.is_too_much(self.who):
            self._stop(503, "the server holds too many bytes of requests from this client's address; try again later")
        if server.bodies.is_full:
            loser = server.choose_to_refuse(self)
            loser.refuse(503, "the server holds too many bytes of requests; try again later")
            if loser is self:
                raise ValueError("refused")
        if request.buffered > PIECE_BYTES and self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()
        if request.came // PIECE_BYTES > (request.came - len(body)) // PIECE_BYTES:
            self._get_on()

    def on_message_complete(self) -> None:
        if self._newest is not None:
            self._newest.whole = True
            self._newest.wake()
        self._in_body, self._quiet = False, 0
        self._get_on()

    # Called by the server

    def refuse(self, status: int, message: str) -> None:
        """Answer with ``message``, and hang up. A request that is complete here, or whose answer has begun, is answered instead,
        as the connection's last."""
        if self._refused:
            return
        self._refused = True
        request = self._newest
        if self._in_body and request is not None and not request.answered:
            self._give_back(request)
            request.drop()
            if self._queue and self._queue[-1] is request:
                self._queue.pop()
        self._in_body = False
        self._is_last = True
        if self._first is not None and self._first.begun:
            self._hang_up()
            return
        if self._is_answering() or (self._first is None and self._queue):
            return
        answer = self._server.refuse(status, message)
        if answer is None:
            self._transport.abort()
            return
        self._transport.write(answer.head("", closes=True) + answer.body)
        if status in (408, 413, 503):  # its sender reads no answer before all of it is gone
            self._resume_reading()
            self._get_on()
        else:
            self._hang_up()

    def check_time(self) -> None:
        """End the connection if it has made no progress for too long."""
        idle = self._server.now - self._progress_at
        if self._drained is not None:
            is_over = idle > READER_SECONDS
        elif self._is_answering() or (self._in_body and not self._is_reading):
            self._progress_at, is_over = self._server.now, False  # the client waits for the server
        elif self._refused or (self._in_body and self._newest is not None and self._newest.answered):
            is_over = idle > LINGER_SECONDS
        elif self._in_body:
            if idle > BODY_SECONDS:
                self.refuse(408, "the request's body arrives too slowly")
            return
        else:
            is_over = idle > (HEAD_SECONDS if self._in_head else IDLE_SECONDS)
        if is_over:
            self._transport.abort()

    def finish(self, *, now: bool = False) -> None:
        """End the connection after the current answer, or ``now``."""
        self._drop_queue()
        if now:
            if self.task is not None:
                self.task.cancel()
            self._transport.abort()
        elif self._first is None:
            self._hang_up()

    def _hang_up(self) -> None:
        if not self._transport.is_closing():  # one of asyncio's for TLS that is closed twice can't be aborted any more
            self._transport.close()

    # Answers

    def _answer_next(self) -> None:
        if self._first is None and self._queue and not self._transport.is_closing():
            self._first = self._queue.popleft()
            self.task = self._loop.create_task(self._answer(self._first))

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._server.answer(request)
            request.begun = not request.dropped
            await self._send(request, answer)
        except asyncio.CancelledError:
            self._transport.abort()  # the client has left, or the server ends
        except BodyLost:
            pass
        except Exception:  # a defect costs one connection, and none of the others
            _log.exception("can't answer %s %s", request.method, request.path[:200])
            self._transport.abort()
        finally:
            self._end(request)

    async def _send(self, request: Request, answer: Answer) -> None:
        if answer.last or not request.is_kept:
            self._drop_queue()
        head = answer.head(self._server.date, closes=self._is_last and not self._queue)
        body = answer.body if answer.has_body and request.method != "HEAD" else b""
        if answer.pieces is None:
            if request.dropped or self._transport.is_closing():
                return
            if len(body) <= PIECE_BYTES and self._drained is None:
                self._transport.write(head + body)
            else:
                await self._write(head + body)
            return
        async with aclosing(answer.pieces) as pieces:
            if request.dropped or self._transport.is_closing():
                return
            await self._write(head)
            if request.method == "HEAD":
                return
            async for piece in pieces:
                if piece:
                    await self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.is_chunked else piece)
            if answer.is_chunked:
                await self._write(b"0\r\n\r\n")

    async def _write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            if self._drained is not None:
                await self._drained
            self._transport.write(data[start : start + PIECE_BYTES])

    def _end(self, request: Request) -> None:
        self._first = self.task = None
        if request.held:
            self._give_back(request)
        request.answered = True
        if self._transport.is_closing():
            return
        is_coming = self._in_body and self._newest is request
        if self._is_last and not self._queue and not request.dropped:
            if is_coming:  # its sender reads no answer before all of it is gone
                self._refused = True
            else:
                self._hang_up()
        self._get_on()
        if not self._is_reading:
            self._resume_reading()
        if self._queue:
            self._answer_next()

    def _is_answering(self) -> bool:
        """Whether the server works on a request: it is complete, or its answer has begun."""
        first = self._first
        return first is not None and not first.dropped and (first.begun or first.whole)

    # Both directions

    def _pull(self) -> None:
        """More of the current request's body is wanted."""
        request = self._first
        if request is not None and request.expects and not request.came and not self._transport.is_closing():
            request.expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._resume_reading()

    def _resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._transport.resume_reading()
            self._get_on()

    def _stop(self, status: int, message: str) -> None:
        """Refuse from within the parser, and stop it."""
        self.refuse(status, message)
        raise ValueError(message)

    def _begin_head(self) -> None:
        if not self._in_head:
            self._in_head = True
            self._get_on()

    def _drop(self, count: int) -> None:
        """Count unwanted bytes, and abort when there are too many."""
        self._unwanted += count
        if self._unwanted > self._server.bounds.most_unwanted_bytes:
            self._transport.abort()  # a goodbye would read on

    def _drop_queue(self) -> None:
        """Answer no request after the current one."""
        self._is_last = True
        for request in self._queue:
            self._give_back(request)
        self._queue.clear()

    def _give_back(self, request: Request) -> None:
        if request.held:
            self._server.bodies.give_back(self.who, request.held)
            request.held = 0

    def _get_on(self) -> None:
        if self._drained is None:  # a client that doesn't read makes no progress
            self._progress_at = self._server.now


def _split(url: bytes) -> tuple[str, str]:
    """Path and query. Raises UnicodeDecodeError, and HttpParserError for anything but a path or a URL."""
    if url[:1] == b"/" and b"#" not in url:
        path, _, query = url.decode("ascii").partition("?")
        return path, query
    url.decode("ascii")
    parsed = httptools.parse_url(url)
    return (parsed.path or b"/").decode("ascii"), (parsed.query or b"").decode("ascii")
