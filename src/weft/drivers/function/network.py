"""A network namespace with a loopback, the node's Runtime API and, if its function names a network, a route there: the calling
thread makes it and enters it."""

from __future__ import annotations

import fcntl
import socket
import struct

from weft.contracts.driver.function import RUNTIME_API_PORT, EgressEndpoint
from weft.drivers.function.egress import enter_new_network

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
BACKLOG = 16


def enter_network(egress_endpoint: EgressEndpoint | None) -> socket.socket:
    """This thread, and what it starts, is alone from here on, or behind the egress endpoint; the socket is the one that others may
    reach, on 127.0.0.1. It keeps its namespace wherever it is served. Raises OSError."""
    if (way_out := enter_new_network(egress_endpoint)) is not None:
        way_out.close()
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
