"""A socket with the packets of one tap. The kernel filters before it copies, and gives no more than the socket's memory holds."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import socket
import struct

from weft.drivers.network.bridge.names import Names
from weft.objects.errors import DriverFailed, InvalidInput, NotFound

QUEUE_BYTES = 4 << 20
_EVERYTHING = 3  # ETH_P_ALL
_SOL_PACKET, _AUXDATA = 263, 8
_ATTACH_FILTER, _TIMES_NS, _RCVBUFFORCE = 26, 35, 33


class Taps:
    """Taps on one node's ports."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def open(self, port_id: str, filter: str, most_bytes: int) -> socket.socket:
        """See contracts.driver.network."""
        return open_tap(self._names.tap(port_id), filter, most_bytes)


def open_tap(link: str, filter: str, most_bytes: int) -> socket.socket:
    """See ``PacketTaps``."""
    late = importlib.import_module("weft.drivers.network.bridge.capture.program")  # for a capture alone
    program = late.compile_filter(filter, most_bytes)
    try:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    except OSError as problem:
        raise DriverFailed(f"packets can't be captured on this node: {problem.strerror}") from problem
    try:
        attach(tap, program)  # before it is bound: it never has packets that weren't filtered
        tap.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        tap.setsockopt(socket.SOL_SOCKET, _TIMES_NS, 1)
        with contextlib.suppress(OSError):
            tap.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, QUEUE_BYTES)
        tap.bind((link, _EVERYTHING))
    except OSError as problem:
        tap.close()
        if problem.errno in (errno.ENODEV, errno.ENXIO, errno.ENETDOWN):
            raise NotFound("the NIC is not on this node", hint="a guest that doesn't run has none") from None
        raise DriverFailed(f"packets can't be captured on this node: {problem.strerror}") from problem
    return tap


def attach(socket_: socket.socket, program: bytes) -> None:
    """Attach the program: from now on the socket takes only what the program takes. Raises InvalidInput for a program that the
    kernel refuses."""
    code = ctypes.create_string_buffer(program, len(program))
    given = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    try:
        socket_.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, given)
    except OSError as problem:
        raise InvalidInput(
            f"filter: the kernel refuses it: {problem.strerror}", field="filter", hint="leave tests out"
        ) from None
