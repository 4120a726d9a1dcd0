"""A process without rights that reads a stranger's file system: no files, no network of use, little memory, limited time.

``begin`` forks it; the two talk over a socket pair. It can only ask its parent for bytes of the one disk, and give it an answer.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
from collections.abc import Callable
from functools import lru_cache

import msgspec

from weft.backup.files.browse import DiskQuestion, answer
from weft.contracts.confinement.system_calls import FILES, NETWORK, OTHERS, refuse_calls
from weft.contracts.confinement.unprivileged import drop_privileges, leave_network
from weft.objects.errors import DriverFailed, WeftError, error_from_dict

MEMORY_BYTES = 512 << 20
CPU_SECONDS = 600
MOST_BYTES = 4 << 20  # of one message
_BLOCK, _CACHED = 1 << 16, 256
_HEAD = struct.Struct(">cQI")  # what it is, an offset, a length
_ASK, _READ, _DATA, _DONE, _ERROR = b"Q", b"R", b"D", b"E", b"X"


class Confined:
    """The parent's end. Make it before there are secrets in the memory: the process has a copy of that. It ends with the thread
    that made it."""

    def __init__(self) -> None:
        mine, its = socket.socketpair()
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            mine.close()
            _live(its, parent)  # doesn't return
        its.close()
        self._socket = mine

    def run(self, question: DiskQuestion, read: Callable[[int, int], bytes], send: Callable[[bytes], None]) -> str:
        """``send`` the answer, ``read`` what the process needs for it. Returns what people should know of it. Raises WeftError."""
        body = msgspec.json.encode(question)
        self._socket.sendall(_HEAD.pack(_ASK, 0, len(body)) + body)
        while True:
            kind, offset, length = _HEAD.unpack(_receive(self._socket, _HEAD.size))
            if length > MOST_BYTES:
                raise DriverFailed("the process that reads the file system misbehaves", reason="workerDied")
            if kind == _READ:
                if offset + length > question.size:
                    raise DriverFailed("the process that reads the file system misbehaves", reason="workerDied")
                self._socket.sendall(read(offset, length))
                continue
            body = _receive(self._socket, length)
            if kind == _DATA:
                send(body)
            elif kind == _DONE:
                return body.decode(errors="replace")
            else:
                raise error_from_dict(msgspec.json.decode(body))

    def end(self) -> None:
        self._socket.close()
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


def _live(given: socket.socket, parent: int) -> None:
    """The process's whole life."""
    code = 1
    try:
        connection = _give_up_rights(given, parent)
        _, _, length = _HEAD.unpack(_receive(connection, _HEAD.size))
        question = msgspec.json.decode(_receive(connection, length), type=DiskQuestion)

        @lru_cache(_CACHED)
        def read_block(number: int) -> bytes:
            offset = number * _BLOCK
            length = min(_BLOCK, question.size - offset)
            connection.sendall(_HEAD.pack(_READ, offset, length))
            return _receive(connection, length)

        def read(offset: int, length: int) -> bytes:
            first, last = offset // _BLOCK, (offset + max(length, 1) - 1) // _BLOCK
            data = b"".join(read_block(number) for number in range(first, last + 1))
            return data[offset - first * _BLOCK :][:length]

        def send(piece: bytes, kind: bytes = _DATA) -> None:
            connection.sendall(_HEAD.pack(kind, 0, len(piece)) + piece)

        try:
            send(answer(question, read, send).encode(errors="replace"), _DONE)
        except WeftError as problem:
            send(msgspec.json.encode(problem.to_dict()), _ERROR)
        except (ValueError, LookupError, struct.error, RecursionError, MemoryError, OverflowError) as problem:
            failed = DriverFailed(
                f"the file system can't be read: {type(problem).__name__}", reason="fileSystemDamaged"
            )
            send(msgspec.json.encode(failed.to_dict()), _ERROR)
        code = 0
    finally:
        os._exit(code)


def _give_up_rights(given: socket.socket, parent: int) -> socket.socket:
    """All but the connection, which becomes descriptor 0: there can be no other one, not even in its place. Raises OSError."""
    os.dup2(given.detach(), 0)
    os.closerange(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    connection = socket.socket(fileno=0)
    leave_network()
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    drop_privileges(parent, limits)
    refuse_calls(FILES, NETWORK, OTHERS)
    return connection


def _receive(connection: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        data = connection.recv(min(length - len(received), 1 << 20))
        if not data:
            raise DriverFailed(
                "the process that reads the file system ended: it took too long, or too much memory",
                reason="fileSystemDamaged",
            )
        received += data
    return bytes(received)
