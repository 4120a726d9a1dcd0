"""The AWS Lambda Runtime API of one instance, on a listening socket that nothing else reaches. One invocation at a time.

Prefix /2018-06-01/runtime/: GET invocation/next (answered when there is one), POST invocation/ID/response and /error, POST
init/error. Source: AWS Lambda's runtime API, 2018-06-01. Head and body leave in one write: in two, each call costs 40 ms.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol, cast

import httptools
import msgspec

from weft.contracts.trace.context import read_traceparent, write_traceparent, write_xray
from weft.protocol.invocations import MAX_PAYLOAD_BYTES

PREFIX = b"/2018-06-01/runtime/"
MOST_CONNECTIONS = 16
MOST_HEADER_BYTES = 64 * 1024
_ERROR_TYPE = b"lambda-runtime-function-error-type"
_ACCEPTED = b'HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"status":"OK"}\n'


class Given(msgspec.Struct, frozen=True):
    """One invocation as the code in an instance sees it."""

    id: str
    payload: bytes
    deadline: float  # unix seconds
    arn: str = ""
    client_context: str = ""
    traceparent: str = ""  # of the span that is the code's parent; "": it has none


class RuntimeListener(Protocol):
    """Called at once, from within the instance's call; ``error_type`` is the runtime's, or ""."""

    def on_next(self) -> None:
        """It is ready for an invocation: after it came up, and after each answer."""

    def on_answer(self, id: str, body: bytes, error_type: str | None) -> None:
        """``error_type`` None: success."""

    def on_too_large(self, id: str) -> None: ...

    def on_init_error(self, body: bytes, error_type: str) -> None: ...


class RuntimeApi:
    """Serves ``listening`` from ``open`` to ``close``."""

    def __init__(self, listening: socket.socket, listener: RuntimeListener) -> None:
        self._listening, self.listener = listening, listener
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._waiting: _Connection | None = None  # holds a GET next
        self._given: Given | None = None
        self._sent = False

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), sock=self._listening)

    def give(self, given: Given) -> None:
        """Set the next invocation; the one before must have been answered."""
        self._given, self._sent = given, False
        self._hand_out()

    @property
    def begun(self) -> bool:
        """Whether the code has received the last given invocation."""
        return self._sent

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()

    def joined(self, connection: _Connection) -> bool:
        """False: there are too many connections."""
        self._connections.add(connection)
        return len(self._connections) <= MOST_CONNECTIONS

    def left(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if self._waiting is connection:
            self._waiting = None

    def asked(self, connection: _Connection) -> None:
        self._waiting = connection
        if self._given is not None and not self._sent:
            self._hand_out()
        else:
            self.listener.on_next()

    def answered(self, id: str, body: bytes, error_type: str | None) -> bool:
        """False: the invocation isn't the current one."""
        if self._given is None or not self._sent or self._given.id != id:
            return False
        self._given = None
        self.listener.on_answer(id, body, error_type)
        return True

    def grew_too_large(self, id: str) -> None:
        if self._given is not None and self._sent and self._given.id == id:
            self._given = None
            self.listener.on_too_large(id)

    def _hand_out(self) -> None:
        if self._waiting is None or self._given is None:
            return
        waiting, self._waiting, self._sent = self._waiting, None, True
        waiting.send(encode_given(self._given))


def encode_given(given: Given) -> bytes:
    """The answer to ``next``. Pure except for the trace's random id, where it has none."""
    parent = read_traceparent(given.traceparent) if given.traceparent else None
    if parent is not None:
        trace = f"{write_xray(parent)}\r\nTraceparent: {write_traceparent(parent)}"
    else:
        trace = f"Root=1-{int(given.deadline):08x}-{os.urandom(12).hex()};Parent={os.urandom(8).hex()};Sampled=0"
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: {given.id}\r\n"
        f"Lambda-Runtime-Deadline-Ms: {int(given.deadline * 1000)}\r\nLambda-Runtime-Trace-Id: {trace}\r\n"
        f"Lambda-Runtime-Invoked-Function-Arn: {_one_line(given.arn)}\r\n"
    )
    if given.client_context:
        head += f"Lambda-Runtime-Client-Context: {_one_line(given.client_context)}\r\n"
    return f"{head}Content-Length: {len(given.payload)}\r\n\r\n".encode() + given.payload


def encode_error(status: str, error_type: str, message: str) -> bytes:
    body = msgspec.json.encode({"errorMessage": message, "errorType": error_type})
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _one_line(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())


class _Connection(asyncio.Protocol):
    """One connection of the instance; its parser calls back."""

    def __init__(self, api: RuntimeApi) -> None:
        self._api = api
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._error_type = ""
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._api.joined(self):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._api.left(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.send(encode_error("400 Bad Request", "InvalidRequest", "not a Runtime API request"))
            self._close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MOST_HEADER_BYTES:
            self.abort()
        elif name.lower() == _ERROR_TYPE:
            self._error_type = value.decode("latin-1")[:200]
        elif name.lower() == b"expect" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes <= MAX_PAYLOAD_BYTES:
            self._body.append(body)
        elif self._body:
            self._body.clear()
            self._on_too_large()

    def on_message_complete(self) -> None:
        url, body, error_type, too_large = self._url, b"".join(self._body), self._error_type, self._too_large
        method = self._parser.get_method()
        self._begin()
        if not too_large:
            self._serve(method, url, body, error_type)

    @property
    def _too_large(self) -> bool:
        return self._body_bytes > MAX_PAYLOAD_BYTES

    def _serve(self, method: bytes, url: bytes, body: bytes, error_type: str) -> None:
        path = url.partition(b"?")[0].removeprefix(PREFIX) if url.startswith(PREFIX) else b""
        words = path.split(b"/")
        if method == b"GET" and path == b"invocation/next":
            self._api.asked(self)
        elif method == b"POST" and path == b"init/error":
            self.send(_ACCEPTED)
            self._api.listener.on_init_error(body, error_type)
        elif (
            method == b"POST" and len(words) == 3 and words[0] == b"invocation" and words[2] in (b"response", b"error")
        ):
            failed = words[2] == b"error" or bool(error_type)
            id = words[1].decode("latin-1")
            if self._api.answered(id, body, error_type if failed else None):
                self.send(_ACCEPTED)
            else:
                self.send(
                    encode_error(
                        "400 Bad Request",
                        "InvalidRequestID",
                        f"no invocation {id[:60]} is in progress in this instance",
                    )
                )
        else:
            self.send(encode_error("404 Not Found", "NotFound", "the Runtime API has no such call"))

    def _on_too_large(self) -> None:
        words = self._url.partition(b"?")[0].removeprefix(PREFIX).split(b"/")
        self.send(
            encode_error(
                "413 Payload Too Large", "RequestEntityTooLarge", f"the body is larger than {MAX_PAYLOAD_BYTES} bytes"
            )
        )
        if len(words) == 3 and words[0] == b"invocation":
            self._api.grew_too_large(words[1].decode("latin-1"))

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
