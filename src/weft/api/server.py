"""The doors' HTTP server: what they bear, how it words what it turns away, and the peer's name put where handlers see it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.types import ASGIApp

from weft.api.authenticate import PEER
from weft.api.problem import MEDIA_TYPE, describe_problem, status_of
from weft.contracts.clock import Clock
from weft.objects.errors import InvalidInput, TimedOut, WeftError
from weft.serving.answer import Answer
from weft.serving.protocol import BoundedProtocol
from weft.serving.server import Bounds, HttpServer

BOUNDS = Bounds(most_connections=8192, most_unwanted_bytes=1_000_000)  # bodies are bounded by who reads them
_NOBODY: Mapping[object, object] = {"name": ""}


def make_doors_server(
    app: ASGIApp, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None, clock: Clock
) -> HttpServer:
    return HttpServer(app, sockets, tls, clock, BOUNDS, _refuse, DoorsProtocol)


class DoorsProtocol(BoundedProtocol):
    """``scope["extensions"]`` gets the common name of the client's certificate, if it showed one that our CA signed."""

    _peer = _NOBODY

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if certificate := transport.get_extra_info("peercert"):
            self._peer = _describe_peer(certificate)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {PEER: dict(self._peer)}


def _refuse(status: int, message: str) -> Answer:
    error: WeftError = TimedOut(message) if status == 408 else InvalidInput(message)
    body = msgspec.json.encode(describe_problem(error, ""))
    return Answer(status_of(error), body, (("content-type", MEDIA_TYPE),))


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
