"""Answers requests at sockets, over TLS, within bounds, behind a doorkeeper."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

from weft.contracts.clock import Clock
from weft.objects.errors import Unavailable
from weft.serving.answer import Answers, Refuse
from weft.serving.doorkeeper import Doorkeeper
from weft.serving.protocol import HttpProtocol
from weft.serving.shares import Bounds, Shares

CHECK_SECONDS = 1.0
CLOSING_SECONDS = 3.0
GOODBYE_SECONDS = 0.3
_HINTS = {
    errno.EADDRINUSE: "ss -ltnp 'sport = :{port}' shows the program that holds the port",
    errno.EADDRNOTAVAIL: "this machine doesn't have the address now: ip address shows those that it has",
    errno.EACCES: "ports below 1024 are root's: take a higher one",
}
_NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME


class HttpServer:
    """``answer`` answers requests: it runs to its end even if the client leaves, unless the answer comes in pieces. ``refuse``
    makes the answers to requests that the server refuses itself. Without ``tls`` only for benchmarks: tokens would be sent in
    clear. ``dated``: answers have a Date header."""

    def __init__(
        self,
        answer: Answers,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        clock: Clock,
        bounds: Bounds,
        refuse: Refuse,
        dated: bool = True,
    ) -> None:
        self.answer, self.sockets, self.bounds, self.refuse = answer, sockets, bounds, refuse
        self.bodies = Shares(bounds.most_held_bytes, bounds.most_held_bytes // bounds.parts)  # bytes, by client
        self.callers = Shares(bounds.most_connections, bounds.most_connections // bounds.parts)  # connections
        self.connections: set[HttpProtocol] = set()
        self.leaving: set[asyncio.Task[None]] = set()  # answer requests of lost connections
        self.date = ""  # the Date header's whole line
        self.now = clock.elapsed()  # at the last check: precise enough for time limits
        self._clock, self._dated = clock, dated
        self._doorkeeper = Doorkeeper(sockets, tls, lambda who: HttpProtocol(self, who), self.callers, clock)
        self._checking: asyncio.Task[None] | None = None

    @property
    def ports(self) -> list[int]:
        return [sock.getsockname()[1] for sock in self.sockets]

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The tasks that answer requests."""
        return [*self.leaving, *(found.task for found in self.connections if found.task is not None)]

    def start(self) -> None:
        """Begin to accept; call it on the loop."""
        self._doorkeeper.start()
        self._checking = asyncio.create_task(self._check_connections())

    async def close(self) -> None:
        """Accept nothing more, let current answers end (3 s at most), and hang up. Idle connections are closed at once, without
        waiting for their TLS goodbyes."""
        self._doorkeeper.close()
        for connection in list(self.connections):
            connection.finish()
        if tasks := self.tasks:
            await asyncio.wait(tasks, timeout=CLOSING_SECONDS)
        if self.connections:
            leaving = [asyncio.create_task(connection.ended.wait()) for connection in list(self.connections)]
            await asyncio.wait(leaving, timeout=GOODBYE_SECONDS)
        tasks = self.tasks
        for connection in list(self.connections):
            connection.finish(now=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._checking is not None:
            self._checking.cancel()

    def choose_to_refuse(self, newcomer: HttpProtocol) -> HttpProtocol:
        """The connection to refuse when all bodies together exceed their bound: one whose body is still arriving, of the client
        that holds most."""
        coming = [found for found in self.connections if found.coming]
        return max(coming, key=lambda found: (self.bodies.held[found.who], found is newcomer), default=newcomer)

    async def _check_connections(self) -> None:
        """End connections that are over their time, and refresh the date: one timer for all."""
        while True:
            if self._dated:
                self.date = f"date: {formatdate(self._clock.now(), usegmt=True)}\r\n"
            self.now = self._clock.elapsed()
            for connection in list(self.connections):
                connection.check_time()
            await self._clock.sleep(CHECK_SECONDS)


def listen_at(path: Path) -> socket.socket:
    """A bound unix socket that only this user may open; what is left of an earlier one is replaced. Raises Unavailable."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        found.bind(str(path))
        path.chmod(0o600)
    except OSError as problem:
        found.close()
        raise Unavailable(f"can't listen at {path}: {problem.strerror or problem}") from problem
    return found


def listen(address: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises Unavailable."""
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
            hint=_HINTS.get(problem.errno or 0, "").format(port=port) or None,
        ) from problem
    made: socket.socket = found
    return made


def make_server_tls(chain: Path, key: Path, ca: Path | None = None) -> ssl.SSLContext:
    """TLS with our certificate. With ``ca`` a client may present a certificate of that CA, and no other. An expired one passes
    the handshake: the application refuses it with an error that says why. No session tickets are sent: they cost a third of a
    handshake, and resuming a session saves no more than that (decision 0443)."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.num_tickets = 0
    tls.options |= ssl.OP_NO_TICKET  # in TLS 1.2
    tls.load_cert_chain(chain, key)
    tls.set_alpn_protocols(["http/1.1"])
    if ca is not None:
        tls.load_verify_locations(ca)
        tls.verify_mode = ssl.CERT_OPTIONAL
        tls.verify_flags = ssl.VerifyFlags(tls.verify_flags | _NO_CHECK_TIME)
    return tls
