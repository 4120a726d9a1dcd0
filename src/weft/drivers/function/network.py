"""A network namespace with nothing but a loopback and the node's Runtime API, made by the calling thread around itself."""

from __future__ import annotations

import fcntl
import socket
import struct

from weft.contracts.function import RUNTIME_API_PORT
from weft.drivers.kernel import CLONE_NEWNET, unshare

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
BACKLOG = 16


def enter_empty_network() -> socket.socket:
    """This thread, and what it starts, is alone from here on; the socket is the one that others may reach, on 127.0.0.1. It keeps
    its namespace wherever it is served. Raises OSError."""
    unshare(CLONE_NEWNET)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        request = struct.pack("16sH22x", b"lo", 0)
        (flags,) = struct.unpack_from("16xH", fcntl.ioctl(listening, _SIOCGIFFLAGS, request))
        fcntl.ioctl(listening, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))
        listening.bind(("127.0.0.1", RUNTIME_API_PORT))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
