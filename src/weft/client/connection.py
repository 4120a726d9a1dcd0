"""One connection to the server, and one request over it. Blocking."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from weft.objects.errors import Unavailable, describe_failure

_SAFE = ("GET", "HEAD", "PUT")
_IN_PATHS = "/?&=%:,()!~*'+@;$#[]"
_PIECE_BYTES = 1 << 20
KEEPALIVE_SECONDS = 3
_PROBES = 3
LOSS_SECONDS = KEEPALIVE_SECONDS * (1 + _PROBES)  # longer than a watch is silent (api/watch/stream.py)
_LAST_DATA_RECEIVED = struct.Struct("@52xI")  # of struct tcp_info: ms since then, or since the connection stands
_encoder = msgspec.json.Encoder()


class FileBody:
    """A file as a request's body, which may be sent again. ``stop`` ends it with Unavailable."""

    def __init__(self, path: Path, stop: threading.Event) -> None:
        self._path, self._stop = path, stop
        self.size = path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                if self._stop.is_set():
                    raise Unavailable("what was being sent is not wanted any more")
                yield piece


class ClientRequest:
    def __init__(self, method: str, path: str, body: Any, headers: dict[str, str]) -> None:
        self.method = method
        self.path = quote(path, safe=_IN_PATHS)
        is_raw = body is None or isinstance(body, bytes | FileBody)
        self.body = body if is_raw else _encoder.encode(body)
        self.headers = headers
        if isinstance(body, FileBody):
            headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(body.size)}
        if self.body is not None:
            headers.setdefault("Content-Type", "application/json")
        self.repeatable = method in _SAFE or "Idempotency-Key" in headers


class Lost(Exception):
    """The exchange failed under way; ``sent``: the server may have got the request."""

    def __init__(self, error: Unavailable, *, sent: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.sent = sent


class Unanswered(Unavailable):
    """The server was connected and asked, and nothing came from it in time."""


BROKEN = (OSError, http.client.HTTPException)


def make_lost(problem: BaseException) -> Lost:
    kind = Unanswered if isinstance(problem, TimeoutError) else Unavailable
    return Lost(kind(f"the connection to the server was lost: {describe_failure(problem)}"), sent=True)


def find_loss(sock: socket.socket) -> None:
    """Have the kernel end the connection to a machine that has lost its power, or is cut off, 12 s after its last word if nothing
    is on its way there. TCP_USER_TIMEOUT would also end one to a reader that only waits. Raises OSError for a closed one."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS),
        (socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS),
        (socket.TCP_KEEPCNT, _PROBES),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class ApiConnection(http.client.HTTPConnection):
    """Used, and closed, by one thread at a time: what another may do is ``cut`` it."""

    auto_open = 0  # one that was hung up stays so

    def __init__(
        self, host: str, port: int, name: str, tls: ssl.SSLContext, timeout_seconds: float, forget: Any
    ) -> None:
        super().__init__(host, port, timeout=timeout_seconds)
        self._name = name
        self._tls = tls
        self._forget = forget
        self._line: ssl.SSLSocket | None = None  # http.client forgets its own once an answer says that it is the last

    def connect(self) -> None:
        super().connect()
        # ``cut`` ends the handshake, too.
        self.sock = self._line = self._tls.wrap_socket(
            self.sock, server_hostname=self._name, do_handshake_on_connect=False
        )
        self._line.do_handshake()

    def find_loss(self) -> None:
        """Have the kernel find out soon that the server's machine is gone: it closes no connection."""
        if self._line is not None:
            with contextlib.suppress(OSError):  # it is closed already
                find_loss(self._line)

    def ask(self, request: ClientRequest) -> None:
        """Send a whole request. Raises Lost."""
        try:
            self.request(request.method, request.path, request.body, request.headers)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            # a server that refuses a body before it has read it may have answered all the same
            pass
        except BROKEN as problem:
            raise make_lost(problem) from problem

    def receive(self) -> http.client.HTTPResponse:
        """Read the head of the answer to the request. Raises Lost."""
        try:
            return self.getresponse()
        except BROKEN as problem:
            raise make_lost(problem) from problem

    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer; a server that hung up would have sent its goodbye."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing has come for so long, as Linux counts it; elsewhere any is."""
        option = getattr(socket, "TCP_INFO", None)
        if self._line is None or option is None:
            return True
        try:
            info = self._line.getsockopt(socket.IPPROTO_TCP, option, _LAST_DATA_RECEIVED.size)
        except OSError:
            return True
        return bool(_LAST_DATA_RECEIVED.unpack(info)[0] >= seconds * 1000)

    def hang_up(self) -> None:
        """Close it, with the unread rest of its answer."""
        self._forget(self)
        self.cut()
        self.close()

    def cut(self) -> None:
        """End the wait of the thread that uses it: that thread finds the connection lost, and closes it."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket's own: that takes from the other thread the state that it reads with.
                socket.socket.shutdown(self._line, socket.SHUT_RDWR)
