"""The messages between the two agents of a migration. Each is a length (u32, big endian) and that much JSON. The source sends
requests, and the target answers each once.
"""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeVar

import msgspec

from weft.contracts.driver.layers import CarriedDisk
from weft.contracts.driver.migration import MigratingGuest, MigrationSettings
from weft.contracts.driver.runtime import Printed
from weft.objects.errors import InvalidInput, Unavailable

MOST_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")
Channel = Literal["control", "memory", "disks"]


class Hello(msgspec.Struct, frozen=True):
    """The first message of every connection."""

    key: str  # of the migration
    channel: Channel
    disk: str = (
        ""  # the connection carries this file of it (DISK, or DISK/NAME), and is answered when all of it has arrived
    )
    ahead: bool = False  # opened before its machine sends anything, which may never happen
    form: str = "qcow2"  # the disk file's format


Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]  # a log's own numbers are less, too


class LogMark(msgspec.Struct, frozen=True):
    """How far a guest's log has come at the source: the number of its next line, and so many bytes of its console before that."""

    next: Count
    position: Count


class MigrationRequest(msgspec.Struct, frozen=True):
    """``expect``: get ready for ``guest``. ``flows``: its open connections have changed. ``stopped``, ``resumed``: it is paused at
    the source, or runs there again. ``takeOver``: it will never run at the source again, so let it run. ``samples``: what was
    measured of it there, a piece at a time, and an empty one last. ``traffic``: its flows there, folded, a piece at a time.
    ``logs``: what it printed there, a piece at a time. A piece comes again, under its number, until it is answered. ``layers``:
    what its disks stand on comes next, as files. ``status``: report how it is."""

    do: Literal["expect", "flows", "stopped", "resumed", "takeOver", "samples", "traffic", "logs", "layers", "status"]
    guest: MigratingGuest | None = None
    settings: MigrationSettings | None = None
    flows: list[list[str]] = []  # its open connections
    # The totals until the handover; the source may be gone before it reports them itself.
    sent_bytes: int = 0
    passes: int = 0
    elapsed_ms: int = 0
    printed: Printed | None = None  # with ``expect`` and ``takeOver``: the part of its console log that migrates
    log: LogMark | None = None  # with that part: the log's own lines may come too late, or never
    samples: bytes = b""
    logs: bytes = b""
    traffic: bytes = b""
    piece: Count = 0  # its number among those of its kind, from 1 on; 0: an older source, which sends each once
    layers: dict[str, CarriedDisk] = {}  # by disk: ROOT, or a volume's uid
    padding: str = ""  # ignored; the time that it takes measures the path


class MigrationAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    done: bool = True
    reason: str = ""  # why not, as ``message``
    message: str = ""


class Receive(Protocol):
    """Receives the files of disks."""

    async def begin(self, disk: str) -> tuple[Path, int]:
        """Path to write the file to, and its greatest length in bytes. Raises WeftError."""

    async def complete(self, disk: str, form: str) -> None:
        """The whole file has arrived. Raises WeftError."""


Message = TypeVar("Message", Hello, MigrationRequest, MigrationAnswer)


def send_message(sock: ssl.SSLSocket, message: Hello | MigrationRequest | MigrationAnswer) -> None:
    """Blocks for as long as the socket's timeout. Raises OSError."""
    data = msgspec.json.encode(message)
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive_message(sock: ssl.SSLSocket, kind: type[Message]) -> Message:
    """Blocks for as long as the socket's timeout. Raises InvalidInput for any other message, Unavailable at the end of the
    connection, OSError."""
    (length,) = _LENGTH.unpack(_receive(sock, _LENGTH.size))
    if length > MOST_BYTES:
        raise InvalidInput(f"the message has {length} bytes; at most {MOST_BYTES} are allowed between agents")
    try:
        return msgspec.json.decode(_receive(sock, length), type=kind)
    except msgspec.MsgspecError as problem:
        raise InvalidInput(f"the message is not one between agents: {problem}") from None


def _receive(sock: ssl.SSLSocket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise Unavailable("the other node closed the connection")
        data += piece
    return bytes(data)


def tune(sock: socket.socket) -> None:
    """Send small messages at once, and notice a lost connection within LOST_SECONDS."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, LOST_SECONDS - 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_SECONDS * 1000)


def is_lost(problem: BaseException) -> bool:
    """Whether the kernel has found that the other node can't be reached any more."""
    return isinstance(problem, OSError) and problem.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


def allow_to_stall(sock: socket.socket) -> None:
    """Let a connection stall that carries a machine's bytes: a slow receiver is not a lost connection. The control connection
    notices that; the kernel's own limit can't tell the two apart."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000)


LOST_SECONDS = 10  # on a path that loses every fifth packet, less would often pass by chance
STALLED_SECONDS = 120
