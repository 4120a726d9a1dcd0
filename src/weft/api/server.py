"""The API server's HTTP server: its bounds, and its answers to requests that it refuses."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Sequence

import msgspec

from weft.api.request.problem import MEDIA_TYPE, describe_problem, status_of
from weft.contracts.clock import Clock
from weft.objects.errors import InvalidInput, TimedOut, WeftError
from weft.serving.answer import Answer, Answers
from weft.serving.server import HttpServer
from weft.serving.shares import Bounds

BOUNDS = Bounds(most_connections=8192, most_unwanted_bytes=1_000_000)  # each reader of a body has a bound of its own


def make_api_server(
    answer: Answers, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None, clock: Clock
) -> HttpServer:
    return HttpServer(answer, sockets, tls, clock, BOUNDS, _refuse)


def _refuse(status: int, message: str) -> Answer:
    error: WeftError = TimedOut(message) if status == 408 else InvalidInput(message)
    body = msgspec.json.encode(describe_problem(error, ""))
    return Answer(status_of(error), body, (("content-type", MEDIA_TYPE),))


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
