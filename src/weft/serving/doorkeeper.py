"""Accepts as many connections as the process can bear, and refuses the others before they cost anything.

Woken by connections. A silent client costs one descriptor and gives way to later ones; handshakes are bounded in time and
number. So clients that merely hold connections open keep nobody out for long, and take nothing from those who are in.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import resource
import socket
import ssl
from collections.abc import Callable, Sequence

from weft.contracts.clock import Clock
from weft.serving.protocol import HttpProtocol
from weft.serving.shares import Shares, who_is

MOST_HANDSHAKES = 512
SILENCE_SECONDS = 10.0  # before the first byte
HANDSHAKE_SECONDS = 5.0
GOODBYE_SECONDS = 30.0  # for TLS to end, including bytes that are still unread
SPARE_DESCRIPTORS = 256  # for the store, the journal and images
_BACKLOG = 2048
_PAUSE_SECONDS = 0.1
_LOG_SECONDS = 60.0
_log = logging.getLogger("weft.serving")


class Doorkeeper:
    """Accepts at ``sockets`` and passes each connection, after its TLS handshake, to a protocol that ``make`` makes.

    ``open_`` counts and bounds the connections by client; a protocol gives its own connection back.
    Without ``tls`` (for benchmarks) there are no handshakes."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        make: Callable[[str], HttpProtocol],
        open_: Shares,
        clock: Clock,
    ) -> None:
        self._sockets = sockets
        self._tls = tls
        self._make = make
        self._open = open_
        self._clock = clock
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS
        self._silent: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._entering: set[asyncio.Task[None]] = set()  # silent ones, and those in their handshake
        self._handshakes = asyncio.Semaphore(MOST_HANDSHAKES)
        self._refused = 0
        self._logged_at = -_LOG_SECONDS
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to accept; call it on the loop."""
        for sock in self._sockets:
            sock.setblocking(False)
            sock.listen(_BACKLOG)
            self._tasks.append(asyncio.create_task(self._accept(sock)))

    def close(self) -> None:
        """Accept nothing more, and drop connections whose handshake isn't done."""
        for task in (*self._tasks, *self._entering):
            task.cancel()
        for sock in self._sockets:
            sock.close()

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(sock)
                if sock.family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as problem:  # no descriptors left, or a peer that went away meanwhile
                _log.warning("can't accept a connection: %s", problem.strerror)
                await self._clock.sleep(_PAUSE_SECONDS)
                continue
            who = who_is(str(address[0]) if address else "")
            has_part = self._open.held[who] >= self._open.part
            is_full = self._open.total >= min(self._open.whole, self._most)
            if has_part or (is_full and not self._drop_silent()):
                connection.close()
                self._refuse()
                continue
            self._open.take(who, 1)
            protocol = self._make(who)
            task = asyncio.create_task(self._let_in(connection, protocol))
            self._entering.add(task)
            if self._tls is not None:
                self._silent[task] = None
            task.add_done_callback(functools.partial(self._ended, connection, protocol))

    async def _let_in(self, connection: socket.socket, protocol: HttpProtocol) -> None:
        let_in = asyncio.get_running_loop().connect_accepted_socket
        if self._tls is None:
            await let_in(lambda: protocol, connection)
            return
        await _wait_for_bytes(connection)
        task = asyncio.current_task()
        if task is not None:
            self._silent.pop(task, None)
        async with self._handshakes, asyncio.timeout(HANDSHAKE_SECONDS):
            await let_in(lambda: protocol, connection, ssl=self._tls, ssl_shutdown_timeout=GOODBYE_SECONDS)

    def _drop_silent(self) -> bool:
        """Close the connection that has been silent longest; False if there is none."""
        for oldest in self._silent:
            del self._silent[oldest]
            oldest.cancel()
            self._refuse()
            return True
        return False

    def _ended(self, connection: socket.socket, protocol: HttpProtocol, task: asyncio.Task[None]) -> None:
        self._entering.discard(task)
        self._silent.pop(task, None)
        problem = None if task.cancelled() else task.exception()
        if task.cancelled() or problem is not None:
            connection.close()
            if not protocol.is_in:
                self._open.give_back(protocol.who, 1)
        if problem is not None and not isinstance(problem, (OSError, TimeoutError)):  # ssl.SSLError is an OSError
            _log.error("can't set up a connection", exc_info=problem)

    def _refuse(self) -> None:
        self._refused += 1
        if self._clock.elapsed() - self._logged_at >= _LOG_SECONDS:
            self._logged_at = self._clock.elapsed()
            _log.warning(
                "%d connections are open; the server has refused %d since its start", self._open.total, self._refused
            )


async def _wait_for_bytes(connection: socket.socket) -> None:
    """Wait until there are bytes to read. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_reader(connection, arrived.set)
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            await arrived.wait()
    finally:
        loop.remove_reader(connection)
