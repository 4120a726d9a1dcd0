"""Sockets in a segment's router: a TCP connection to a guest in it, by which people's byte streams reach a port that isn't
published, and sockets at which the agent listens to its guests.

The socket is made inside the router's network namespace and stays there; a thread of its own enters the namespace for
that and ends, so no other thread ever sees it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from weft.drivers.network.bridge.kernel import NAMESPACES
from weft.drivers.network.bridge.names import Names

CONNECT_SECONDS = 5.0
_CLONE_NEWNET = 0x4000_0000


async def dial_inside(namespace: str, address: str, port: int, seconds: float = CONNECT_SECONDS) -> socket.socket:
    """A connected socket. Raises OSError."""
    return await _make_inside(lambda: _dial(namespace, address, port, seconds))


async def send_inside(namespace: str, link: str, to: tuple[str, int], packets: Sequence[bytes]) -> None:
    """Send UDP packets to an address of the namespace itself, as if they had come in by ``link``. Raises OSError."""
    (await _make_inside(lambda: _send(namespace, link, to, packets))).close()


class GatewaySockets:
    """Sockets at the gateways of a node's segments."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def name_router(self, segment_id: str) -> str:
        """See contracts.driver.network."""
        return self._names.router(segment_id)

    async def listen(self, segment_id: str, address: str, port: int, protocol: Literal["tcp", "udp"]) -> socket.socket:
        """See contracts.driver.network. Raises OSError."""
        namespace = self._names.router(segment_id)
        return await _make_inside(lambda: _listen(namespace, address, port, protocol))


async def _make_inside(make: Callable[[], socket.socket]) -> socket.socket:
    loop = asyncio.get_running_loop()
    made: asyncio.Future[socket.socket] = loop.create_future()

    def settle(connection: socket.socket | None, problem: OSError | None) -> None:
        if made.done():  # nobody waits any more
            if connection is not None:
                connection.close()
        elif connection is not None:
            made.set_result(connection)
        else:
            made.set_exception(problem or OSError("no connection"))

    def work() -> None:
        connection, problem = None, None
        try:
            connection = make()
        except OSError as error:
            problem = error
        loop.call_soon_threadsafe(settle, connection, problem)

    threading.Thread(target=work, name="weft-dial", daemon=True).start()
    return await made


def enter_namespace(namespace: str) -> None:
    """Take the calling thread, which must be its caller's alone and end after it, into a network namespace. Raises OSError."""
    inside = os.open(NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(inside, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"can't enter network namespace {namespace}")
    finally:
        os.close(inside)


def _dial(namespace: str, address: str, port: int, seconds: float) -> socket.socket:
    enter_namespace(namespace)
    connection = socket.create_connection((address, port), timeout=seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _send(namespace: str, link: str, to: tuple[str, int], packets: Sequence[bytes]) -> socket.socket:
    enter_namespace(namespace)
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        for packet in packets:
            made.sendto(packet, to)
    except OSError:
        made.close()
        raise
    return made


def _listen(namespace: str, address: str, port: int, protocol: Literal["tcp", "udp"]) -> socket.socket:
    enter_namespace(namespace)
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
