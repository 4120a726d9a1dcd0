"""Lets connections in, as many as the process can bear, and turns the others away before they cost anything.

Woken by connections. Whoever doesn't end his TLS handshake gives way to who comes later: strangers who only hold
connections open keep nobody out, and take nothing from those who are in.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import resource
import socket
import ssl
from collections.abc import Callable, Collection, Sequence

from weft.contracts.clock import Clock

MOST_CONNECTIONS = 8192
MOST_HANDSHAKES = 512
HANDSHAKE_SECONDS = 10.0
GOODBYE_SECONDS = 30.0  # with all that was still to be read before
SPARE_DESCRIPTORS = 256  # for the store, the journal and images
_BACKLOG = 2048
_PAUSE_SECONDS = 0.1
_TELL_SECONDS = 60.0
_log = logging.getLogger("weft.api")


class Doorkeeper:
    """Accepts at ``sockets`` and hands each connection, once its TLS stands, to a protocol that ``make`` makes.

    ``open_`` are the connections that are in. Without ``tls`` (for measuring) there are no handshakes."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        make: Callable[[], asyncio.Protocol],
        open_: Collection[object],
        clock: Clock,
    ) -> None:
        self._sockets = sockets
        self._tls = tls
        self._make = make
        self._open = open_
        self._clock = clock
        self._most = min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS)
        self._handshakes: dict[asyncio.Task[None], socket.socket] = {}  # the oldest first
        self._refused = 0
        self._told_at = -_TELL_SECONDS
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to accept; call on the loop."""
        for sock in self._sockets:
            sock.setblocking(False)
            sock.listen(_BACKLOG)
            self._tasks.append(asyncio.create_task(self._accept(sock)))

    def close(self) -> None:
        """Accept nothing more, and drop whoever isn't in yet."""
        for task in (*self._tasks, *self._handshakes):
            task.cancel()
        for sock in self._sockets:
            sock.close()

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(sock)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as problem:  # no descriptors left, or a peer that went away meanwhile
                _log.warning("a connection can't be accepted: %s", problem.strerror)
                await self._clock.sleep(_PAUSE_SECONDS)
                continue
            if len(self._open) + len(self._handshakes) >= self._most:
                if not self._handshakes:
                    connection.close()
                    self._refuse()
                    continue
                self._drop_oldest()
            elif len(self._handshakes) >= MOST_HANDSHAKES:
                self._drop_oldest()
            task = asyncio.create_task(self._shake_hands(connection))
            self._handshakes[task] = connection
            task.add_done_callback(functools.partial(self._handshake_ended, connection))

    async def _shake_hands(self, connection: socket.socket) -> None:
        accept = asyncio.get_running_loop().connect_accepted_socket
        if self._tls is None:
            await accept(self._make, connection)
            return
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            await accept(self._make, connection, ssl=self._tls, ssl_shutdown_timeout=GOODBYE_SECONDS)

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._handshakes))
        del self._handshakes[oldest]
        oldest.cancel()
        self._refuse()

    def _handshake_ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)
        problem = None if task.cancelled() else task.exception()
        if task.cancelled() or problem is not None:
            connection.close()
        if problem is not None and not isinstance(problem, (OSError, TimeoutError)):  # ssl.SSLError is an OSError
            _log.error("a connection could not be let in", exc_info=problem)

    def _refuse(self) -> None:
        self._refused += 1
        if self._clock.elapsed() - self._told_at >= _TELL_SECONDS:
            self._told_at = self._clock.elapsed()
            _log.warning(
                "%d connections are open: %d were turned away since the server's start", len(self._open), self._refused
            )
