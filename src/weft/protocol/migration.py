"""What two agents send each other about a migration: what a connection is for, what the source asks, what the target answers.

Each message is a length (u32, big endian) and as much JSON. The source asks, the target answers once to each.
"""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec

from weft.contracts.driver.migration import MigratingGuest, MigrationSettings
from weft.contracts.driver.runtime import Printed
from weft.objects.errors import InvalidInput, Unavailable

MOST_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")
Channel = Literal["control", "memory", "disks"]


class Hello(msgspec.Struct, frozen=True):
    """The first message of every connection: which migration it is for, and which of its channels; ``disk``: it brings the file of
    that one, in the format ``form``, and is answered when it is there; ``ahead``: the machine that it is for sends nothing yet,
    and perhaps never will."""

    key: str
    channel: Channel
    disk: str = ""
    ahead: bool = False
    form: str = "qcow2"


class MigrationRequest(msgspec.Struct, frozen=True):
    """``expect``: be there for ``guest``, whose open connections are ``flows``, or (``flows``) are by now; ``stopped``,
    ``resumed``: it stands still at the source, or runs there again; ``takeOver``: it never will run there again, so let it
    run; ``look``: say how it is. ``sent_bytes``, ``passes``, ``elapsed_ms``: what it came to until it was handed over; the source
    may be gone before its own report is heard. ``printed`` (``expect``, ``takeOver``): on its console, as far as it is to be
    known at the target too. ``padding`` says nothing: how long it takes tells of the path."""

    do: Literal["expect", "flows", "stopped", "resumed", "takeOver", "look"]
    guest: MigratingGuest | None = None
    settings: MigrationSettings | None = None
    flows: list[list[str]] = []
    sent_bytes: int = 0
    passes: int = 0
    elapsed_ms: int = 0
    printed: Printed | None = None
    padding: str = ""


class MigrationAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """``reason`` and ``message`` say why not."""

    done: bool = True
    reason: str = ""
    message: str = ""


class Receive(Protocol):
    """The files of disks that come."""

    async def begin(self, disk: str) -> tuple[Path, int]:
        """Where to write the file, and how many bytes it can be at most. Raises WeftError."""

    async def complete(self, disk: str, form: str) -> None:
        """It is there, all of it. Raises WeftError."""


Message = TypeVar("Message", Hello, MigrationRequest, MigrationAnswer)


def send_message(sock: ssl.SSLSocket, message: Hello | MigrationRequest | MigrationAnswer) -> None:
    """Blocks for as long as the socket's timeout. Raises OSError."""
    data = msgspec.json.encode(message)
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive_message(sock: ssl.SSLSocket, kind: type[Message]) -> Message:
    """Blocks for as long as the socket's timeout. Raises InvalidInput for what is no such message, Unavailable at the end of
    the connection, OSError."""
    (length,) = _LENGTH.unpack(_receive(sock, _LENGTH.size))
    if length > MOST_BYTES:
        raise InvalidInput(f"a message of {length} bytes is longer than any between agents")
    try:
        return msgspec.json.decode(_receive(sock, length), type=kind)
    except msgspec.MsgspecError as problem:
        raise InvalidInput(f"not a message between agents: {problem}") from None


def _receive(sock: ssl.SSLSocket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise Unavailable("the other node closed the connection")
        data += piece
    return bytes(data)


def tune(sock: socket.socket) -> None:
    """Small messages go at once, and a lost line is noticed within LOST_SECONDS."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, LOST_SECONDS - 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_SECONDS * 1000)


def is_lost(problem: BaseException) -> bool:
    """Whether the other node can't be reached any more, as the kernel found by itself."""
    return isinstance(problem, OSError) and problem.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


def allow_to_stall(sock: socket.socket) -> None:
    """For what carries a machine's bytes: one that is slow to take them is not a lost line, which the connection for questions
    tells of; the kernel's own limit counts both."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000)


LOST_SECONDS = 10  # on a path that loses every fifth packet, fewer questions go unanswered in a row by chance too often
STALLED_SECONDS = 120
