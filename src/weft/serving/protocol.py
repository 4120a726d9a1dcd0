"""One connection: uvicorn's protocol, within bounds. Decides when one that idles, whose request doesn't get on, or whose answer
isn't taken, is ended, and what is too long, too large or too much. Woken by what comes, and by the server, to ``look``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from weft.serving.server import HttpServer

IDLE_SECONDS = 75.0
HEAD_SECONDS = 15.0
BODY_SECONDS = 30.0  # for each 64 KiB of it
READER_SECONDS = 30.0  # to take what is buffered for him
LINGER_SECONDS = 15.0  # for what is still to come of a body that was answered already
HEAD_BYTES = 65_536
MOST_HEADERS = 200
PIECE_BYTES = 65_536
READ_BYTES = 262_144  # what comes at once: with the last piece of a head, also of what follows
MOST_AHEAD = 64  # requests sent before the answer to the first


class BoundedProtocol(HttpToolsProtocol):
    """``who``: whose it is, of those who share; ``is_in``: whether its TLS stands."""

    is_in = False

    def __init__(self, server: HttpServer, who: str) -> None:
        super().__init__(server.config, server.state, {})
        self._door, self.who = server, who
        self._moved = 0.0  # when it got on last
        self.ended = asyncio.Event()
        self._first: RequestResponseCycle | None = None  # the one being answered; ``cycle`` is the newest
        self._refused = self._in_head = self._in_body = False
        self._held: deque[int] = deque()  # bytes of the bodies that aren't answered yet, in order
        self._unread = self._unwanted = self._progress = self._coming = 0

    @property
    def coming(self) -> int:
        """Bytes of a body whose end isn't here."""
        return self._coming if self._in_body else 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.is_in = True
        self._get_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_body = False
        self._leave()
        self._door.callers.give_back(self.who, 1)
        self._door.bodies.give_back(self.who, sum(self._held))
        self._held.clear()
        self.ended.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._drop(len(data))
            return
        if not self._in_body:
            self._begin_head()
        self._unread += len(data)
        if self._unread > HEAD_BYTES + READ_BYTES:
            self.refuse(431, "the request's head is too long")
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refuse(400, "no other protocol is spoken here")
        except httptools.HttpParserError as problem:
            self.refuse(400, f"this is no HTTP request: {problem}")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._held.append(0)
        self._unwanted = self._coming = self._progress = 0
        self._begin_head()

    def on_headers_complete(self) -> None:
        if len(self.url) > HEAD_BYTES:
            self._stop(414, "the request's address is too long")
        if len(self.headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._stop(431, "the request's head is too long")
        length = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        most = self._door.bounds.most_body_bytes
        if length > most:
            self._stop(413, f"the request's body has {length} bytes: at most {most}")
        try:
            self.url.decode("ascii")
            super().on_headers_complete()
        except (UnicodeDecodeError, httptools.HttpParserError):
            self._stop(400, "the request's address is not an ASCII path")
        if len(self.pipeline) > MOST_AHEAD:
            self._stop(400, "too many requests were sent ahead")
        self._in_head, self._in_body, self._unread = False, True, 0
        self._get_on()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        if self.cycle.response_complete:
            self._drop(len(body))
            return
        super().on_body(body)
        door = self._door
        self._coming += len(body)
        self._held[-1] += len(body)
        door.bodies.take(self.who, len(body))
        if self._coming > door.bounds.most_body_bytes:
            self._stop(413, f"the request's body has more than {door.bounds.most_body_bytes} bytes")
        if door.bodies.is_too_much(self.who):
            self._stop(503, "too much of this address is under way here just now")
        if door.bodies.is_full:
            loser = door.make_room(self)
            loser.refuse(503, "too much is under way here just now")
            if loser is self:
                raise ValueError("refused")
        if self._coming - self._progress >= PIECE_BYTES:
            self._progress = self._coming
            self._get_on()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body, self._unread = False, 0
        self._get_on()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._first = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """In uvicorn's stead, which has a timer for each connection that rests."""
        if held := self._held.popleft():
            self._door.bodies.give_back(self.who, held)
        self._get_on()
        self.flow.resume_reading()
        if self.pipeline and not self.transport.is_closing():
            self._start_asgi_task(*self.pipeline.pop())

    def pause_writing(self) -> None:
        self._get_on()
        super().pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._get_on()

    def refuse(self, status: int, message: str) -> None:
        """Say so and hang up; where an answer is under way, that one is the last, and ends the connection."""
        if self._refused:
            return
        answered, self._refused = self._is_answering(), True
        if self._in_body and not self.cycle.response_complete:  # let go of what came of its body
            self._door.bodies.give_back(self.who, self._held.pop())
            self.cycle.body.clear()
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._in_body = False
        if answered and self._first is not None:
            self.pipeline.clear()
            self._first.keep_alive = False
            if self._first.response_started:
                self.hang_up()
            return
        answer = self._door.refuse(status, message)
        if answer is None:
            self.transport.abort()
            return
        head = [f"{name}: {value}\r\n".encode("latin-1", "replace") for name, value in answer.headers]
        head.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(answer.body))
        self.transport.write(b"".join((STATUS_LINE[answer.status], *head, answer.body)))
        if status in (408, 413, 503):  # its sender reads no answer before all of it is gone
            self.flow.resume_reading()
            self._get_on()
        else:
            self.hang_up()

    def look(self) -> None:
        """End it, if it hasn't got on for as long as it may take over what it is at."""
        now, answering = self._door.now, self._is_answering()
        idle = now - self._moved
        if self.flow.write_paused:
            is_over = idle > READER_SECONDS
        elif answering or (self.flow.read_paused and self._in_body):
            self._moved, is_over = now, False  # it waits for us
        elif self._refused or (self._in_body and self.cycle.response_complete):
            is_over = idle > LINGER_SECONDS
        elif self._in_body:
            if idle > BODY_SECONDS:
                self.refuse(408, "the request's body comes too slowly")
            return
        else:
            is_over = idle > (HEAD_SECONDS if self._in_head else IDLE_SECONDS)
        if is_over:
            self.transport.abort()

    def drop(self) -> None:
        """End it at once, whatever is under way."""
        self._leave()
        self.transport.abort()

    def hang_up(self) -> None:
        if not self.transport.is_closing():  # one of asyncio's for TLS that is closed twice can't be aborted any more
            self.transport.close()

    def _stop(self, status: int, message: str) -> None:
        """Refuse from within the parser, which shall go no further."""
        self.refuse(status, message)
        raise ValueError(message)

    def _leave(self) -> None:
        if self._first is not None:
            self._first.disconnected = True

    def _is_answering(self) -> bool:
        """Whether somebody here is at work on a request: it came whole, or its answer has begun."""
        first = self._first
        return first is not None and not first.response_complete and (first.response_started or not first.more_body)

    def _begin_head(self) -> None:
        if not self._in_head:
            self._in_head = True
            self._get_on()

    def _drop(self, count: int) -> None:
        """So much more has come of what nobody wants."""
        self._unwanted += count
        if self._unwanted > self._door.bounds.most_unwanted_bytes:
            self.hang_up()

    def _get_on(self) -> None:
        if not self.flow.write_paused:  # a reader's time goes on until he reads
            self._moved = self._door.now
