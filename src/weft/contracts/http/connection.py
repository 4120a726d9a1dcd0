"""Requests to other people's HTTP servers, within bounds: of the time that a request takes in all, of each wait, and of the bytes
that are read of an answer, its head included. Everything here blocks.

It follows no redirect, and asks no proxy but a given one. A request fails with one of ``FAILURES``; ``describe_failure`` has
words for each.
"""

from __future__ import annotations

import base64
import http.client
import io
import math
import select
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from weft.contracts.clock import Clock, SystemClock

MOST_HEAD_BYTES = 65_536  # also of what stands between and behind the pieces of a body
FAILURES = (OSError, http.client.HTTPException, ValueError)
# How a connection ends on which a request was sent. One that can't be made is refused in other ways.
HANG_UPS = (
    http.client.RemoteDisconnected,
    http.client.IncompleteRead,
    ConnectionResetError,
    BrokenPipeError,
    ssl.SSLEOFError,
)
_PIECE_BYTES = 262_144
_RECORD_BYTES = 16_384  # of TLS: what is sent with one wait

Dial = Callable[[str, int], socket.socket]


class TooLong(OSError):
    """The answer is longer than was asked for."""


class Reply(NamedTuple):
    status: int
    body: bytes


def exchange(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    seconds: float,
    most_bytes: int,
    silence_seconds: float = math.inf,
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """One request over a connection of its own. Raises one of FAILURES."""
    clock = SystemClock()
    with closing(HttpConnection(url, tls=tls, silence_seconds=silence_seconds, clock=clock)) as connection:
        response = connection.begin(method, url, body, headers, ends=clock.elapsed() + seconds, most_bytes=most_bytes)
        return read_reply(response, most_bytes)


class HttpConnection(http.client.HTTPConnection):
    """A connection to the server of ``url``, made with the first request, and again after ``close``; for one thread. The server's
    certificate must be for ``name``, or else its host, as ``tls`` says. ``silence_seconds`` bounds each single wait; ``dial``
    chooses the address, and bounds that itself. ``proxy`` is the URL of one that is asked instead. Raises ValueError for a bad
    URL."""

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | None = None,
        name: str = "",
        silence_seconds: float = math.inf,
        clock: Clock | None = None,
        dial: Dial | None = None,
        proxy: str = "",
    ) -> None:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError("its URL names no host")
        self._secure = parts.scheme == "https"
        self.default_port = 443 if self._secure else 80
        super().__init__(parts.hostname, parts.port or self.default_port)
        self._tls, self._name = tls, name or self.host
        self._over: dict[str, str] | None = None  # headers of each request to a proxy that reads them
        if proxy:
            self._ask_over(proxy)
        self._silence, self._ends = silence_seconds, math.inf
        self._elapsed = (clock or SystemClock()).elapsed
        self._dial = dial or self._dial_first
        self.response_class = self._make_response  # type: ignore[assignment]

    def begin(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        ends: float,
        most_bytes: float,
    ) -> http.client.HTTPResponse:
        """The head of the answer to a request for the path in ``url``. It and its body come until ``ends``, by the clock, or not at
        all. Raises one of FAILURES."""
        self.connect_until(ends)
        parts = urlsplit(url)
        place = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        if self._over is not None:
            place = f"{parts.scheme}://{parts.netloc}{place}"
        try:
            self.request(method, place, body, {**(headers or {}), **(self._over or {})})
        except (ValueError, http.client.InvalidURL):  # the message would have the header in it, which may be a password
            raise ValueError("the request has characters that HTTP does not allow") from None
        response: _Response = self.getresponse()  # type: ignore[assignment]
        response.allow(2 * most_bytes + MOST_HEAD_BYTES)  # in small pieces it may be twice as long
        return response

    def connect_until(self, ends: float) -> None:
        """Connect, unless it is connected. Raises OSError."""
        self._ends = ends
        if self.sock is None:
            self.connect()

    def connect(self) -> None:
        self.sock = self._dial(self.host, self.port)
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tunnel_host:  # type: ignore[attr-defined]
                self._tunnel()  # type: ignore[attr-defined]
            if self._secure:
                tls = self._tls or ssl.create_default_context()
                self.sock.settimeout(self._limit())
                self.sock = tls.wrap_socket(self.sock, server_hostname=self._name)
        except BaseException:
            self.close()
            raise

    def send(self, data: Any) -> None:
        for at in range(0, len(data), _RECORD_BYTES):
            self.sock.settimeout(self._limit())
            super().send(data[at : at + _RECORD_BYTES])

    def shorten(self, seconds: float) -> None:
        """Give what is left of the answer ``seconds`` at most."""
        self._ends = min(self._ends, self._elapsed() + seconds)

    def is_quiet(self) -> bool:
        """Whether it may be used again: after an answer nothing has come. A server that hung up would have sent its goodbye."""
        return self.sock is not None and not select.select([self.sock], [], [], 0)[0]

    def _ask_over(self, proxy: str) -> None:
        over, headers = urlsplit(proxy), dict[str, str]()
        if over.username:
            named = f"{unquote(over.username)}:{unquote(over.password or '')}".encode()
            headers["Proxy-Authorization"] = f"Basic {base64.b64encode(named).decode()}"
        if self._secure:
            self.set_tunnel(self.host, self.port, headers)
        else:
            self._over = headers
        self.host, self.port = over.hostname or "", over.port or 80

    def _dial_first(self, host: str, port: int) -> socket.socket:
        """A connection to the first address of ``host`` that takes it. Raises OSError."""
        problem: OSError | None = None
        for family, kind, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = None
            try:
                sock = socket.socket(family, kind)  # a machine may have no IPv6
                sock.settimeout(self._limit())
                sock.connect(place)
                return sock
            except OSError as refused:
                problem = refused
                if sock is not None:
                    sock.close()
        raise problem or OSError(f"{host} has no address")

    def _limit(self) -> float | None:
        """Seconds that the next wait may take; None: any. Raises TimeoutError."""
        left = min(self._ends - self._elapsed(), self._silence)
        if left <= 0:
            raise TimeoutError
        return None if left == math.inf else left

    def _make_response(self, sock: socket.socket, *given: Any, **named: Any) -> http.client.HTTPResponse:
        return _Response(sock, self._limit, *given, **named)


def read_reply(response: http.client.HTTPResponse, most_bytes: int) -> Reply:
    """The whole answer; its connection may be used again then. Raises one of FAILURES, TooLong."""
    body = bytearray()
    while piece := response.read1(_PIECE_BYTES):
        body += piece
        if len(body) > most_bytes:
            raise TooLong(f"its answer is too long: more than {most_bytes} bytes")
    if response.length:  # read1 doesn't tell
        raise http.client.IncompleteRead(bytes(body), response.length)
    response.close()  # else the connection waits for the rest of an answer without a body
    return Reply(response.status, bytes(body))


class Reader(io.RawIOBase):
    """A reader of what ``sock`` receives, ``left`` bytes of it, each time within ``limit()`` seconds. ``hold`` is closed with
    it."""

    def __init__(
        self, sock: socket.socket, limit: Callable[[], float | None], left: float, hold: io.RawIOBase | None = None
    ) -> None:
        self._sock, self._limit, self.left, self._hold = sock, limit, left, hold

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self.left <= 0:
            raise TooLong("its answer is too long")
        self._sock.settimeout(self._limit())
        got = self._sock.recv_into(memoryview(buffer)[: int(min(len(buffer), self.left))])
        self.left -= got
        return got

    def close(self) -> None:
        super().close()
        if self._hold is not None:
            self._hold.close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, limit: Callable[[], float | None], *given: Any, **named: Any) -> None:
        super().__init__(sock, *given, **named)
        self._reader = Reader(sock, limit, MOST_HEAD_BYTES, hold=self.fp.detach())
        self.fp = io.BufferedReader(self._reader)

    def allow(self, most_bytes: float) -> None:
        self._reader.left = most_bytes
