"""Asks a Ceph daemon on this machine through its admin socket; blocks, within a time.

Source: Ceph's src/common/admin_socket.cc: a command as JSON up to a zero byte; the answer's length (u32, big endian), the answer.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

SECONDS = 3.0
MOST_BYTES = 16 << 20
_LENGTH = struct.Struct(">I")


def ask_daemon(path: str, command: str) -> Any:
    """Raises OSError for a daemon that doesn't answer, ValueError for an answer that can't be read."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        connection.sendall(json.dumps({"prefix": command, "format": "json"}).encode() + b"\0")
        (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
        if length > MOST_BYTES:
            raise ValueError(f"an answer of {length} bytes")
        return json.loads(_receive(connection, length))


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := connection.recv(count - len(data))):
            raise ConnectionError("it closed the connection")
        data += more
    return data
