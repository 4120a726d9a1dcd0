"""A published UDP port on the gateway's machine: one socket to the node for each client, until both are silent for long.

Reads and writes datagrams as they are. Woken by them; a client's socket is closed after ``IDLE_SECONDS`` without a datagram.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from weft.contracts.clock import Clock

log = logging.getLogger("weft.gateway")
IDLE_SECONDS = 60.0
MAX_CLIENTS = 1024

Address = tuple[str, int]


class DatagramRelay(asyncio.DatagramProtocol):
    """The datagrams of one port. ``find_target`` gives the port's present target (None: there is none, and datagrams are
    dropped, as a network does)."""

    def __init__(self, find_target: Callable[[], Address | None], clock: Clock) -> None:
        self._find_target, self._clock = find_target, clock
        self._transport: asyncio.DatagramTransport | None = None
        self._clients: dict[Address, _NodeSocket] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        for task in list(self._tasks):
            task.cancel()
        for far in self._clients.values():
            far.close()
        self._clients.clear()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        client: Address = (addr[0], addr[1])
        far, target = self._clients.get(client), self._find_target()
        if far is not None and far.target != target:  # the guest is on another node now
            far.close()
            far = None
        if far is None:
            if target is None or len(self._tasks) >= MAX_CLIENTS:
                return
            far = self._clients[client] = _NodeSocket(target, self._clock, self._answer(client))
            task = asyncio.ensure_future(self._keep(client, far))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        far.send(data)

    def _answer(self, client: Address) -> Callable[[bytes], None]:
        def answer(data: bytes) -> None:
            if self._transport is not None:
                self._transport.sendto(data, client)

        return answer

    async def _keep(self, client: Address, far: _NodeSocket) -> None:
        """Connect the socket to the node, and close it once it is idle."""
        try:
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: far, remote_addr=far.target)
            while not far.closed:
                quiet = self._clock.elapsed() - far.heard_at
                if quiet >= IDLE_SECONDS:
                    break
                await self._clock.sleep(IDLE_SECONDS - quiet)
        except OSError as problem:
            log.debug("published UDP to %s: %s", far.target[0], problem)
        finally:
            far.close()
            if self._clients.get(client) is far:
                del self._clients[client]


class _NodeSocket(asyncio.DatagramProtocol):
    """One client's socket to the node: datagrams wait until it is connected, up to a bound."""

    _MOST_WAITING = 64

    def __init__(self, target: Address, clock: Clock, answer: Callable[[bytes], None]) -> None:
        self.target = target
        self.heard_at = clock.elapsed()
        self.closed = False
        self._clock, self._answer = clock, answer
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if self.closed:
            transport.close()
            return
        for data in self._waiting:
            transport.sendto(data)
        self._waiting.clear()

    def send(self, data: bytes) -> None:
        self.heard_at = self._clock.elapsed()
        if self._transport is not None:
            self._transport.sendto(data)
        elif len(self._waiting) < self._MOST_WAITING:
            self._waiting.append(data)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.heard_at = self._clock.elapsed()
        self._answer(data)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there now: UDP can't report that to the client, which will try again."""

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.close()
