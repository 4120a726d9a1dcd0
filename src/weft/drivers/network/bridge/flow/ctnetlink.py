"""Reads the kernel's connection tracking over ctnetlink: what it follows now, and what it has just forgotten.

Layouts: linux/netfilter/nfnetlink_conntrack.h. A program would print megabytes of text for what is read here in milliseconds.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator

import msgspec

from weft.objects.errors import DriverFailed

_NETFILTER = 12
_DUMP = 1 << 8 | 1  # IPCTNL_MSG_CT_GET
_FORGOTTEN = 1 << 8 | 2  # IPCTNL_MSG_CT_DELETE
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_DESTROY_GROUP = 3
_SOL_NETLINK, _ADD_MEMBERSHIP, _RCVBUFFORCE = 270, 1, 33
_RECEIVE_BYTES = 1 << 18
_EVENT_BYTES = 8 << 20  # what ended between two reads; what doesn't fit is lost, and counted
_DUMP_SECONDS = 10.0

_ORIGINAL, _COUNTERS_ORIGINAL, _COUNTERS_REPLY, _ID, _ZONE, _TIMESTAMP = 1, 9, 10, 12, 18, 20
_TYPE = 0x3FFF
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BODY = _HEADER.size + 4  # nfgenmsg
_ADDRESSES = struct.Struct("!8x4s4x4s")  # in CTA_TUPLE_IP of IPv4
_PROTOCOL = struct.Struct("!28xB")
_PORTS = struct.Struct("!36xH6xH")
_COUNTERS = struct.Struct("!4xQ4xQ")
_WITH_PORTS = (6, 17, 33, 132, 136)  # TCP, UDP, DCCP, SCTP, UDP-Lite


class Tracked(msgspec.Struct, frozen=True):
    """One tracked connection, as it was opened. Bytes are of IP packets."""

    zone: int
    id: int
    protocol: int
    source: bytes  # packed IPv4
    destination: bytes
    source_port: int  # 0 where there is none
    destination_port: int
    sent_packets: int  # by the source
    sent_bytes: int
    received_packets: int
    received_bytes: int
    started: float  # unix seconds; 0: unknown


Wanted = Callable[[int, bytes, bytes], bool]  # zone, source, destination


def read_tracked(wanted: Wanted) -> list[Tracked]:
    """What the kernel follows now, of IPv4. Blocks for milliseconds. Raises DriverFailed."""
    found: list[Tracked] = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as kernel:
            kernel.bind((0, 0))
            kernel.settimeout(_DUMP_SECONDS)
            request = struct.pack("=BBH", socket.AF_INET, 0, 0)
            kernel.send(_HEADER.pack(_HEADER.size + len(request), _DUMP, _REQUEST_DUMP, 1, 0) + request)
            while True:
                data = kernel.recv(_RECEIVE_BYTES)
                for kind, start, end in _split(data):
                    if kind == _DONE:
                        return found
                    if kind == _ERROR:
                        raise OSError(-struct.unpack_from("=i", data, start)[0], "the kernel refused")
                    one = parse_tracked(data, start + 4, end, wanted)
                    if one is not None:
                        found.append(one)
    except OSError as problem:
        raise DriverFailed(
            f"network: the node's connections can't be read: {problem.strerror or problem}",
            hint="modprobe nf_conntrack_netlink on the node",
            details={"step": "read flows"},
        ) from problem


class Forgotten:
    """Connections that the kernel has forgotten, with their last counters. The kernel queues them between two reads, so that a
    flood of short ones costs no more than what the queue holds."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def listen(self) -> None:
        """Have them queued from here on. Raises DriverFailed."""
        if self._socket is not None:
            return
        try:
            kernel = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETFILTER
            )
            kernel.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _EVENT_BYTES)
            kernel.bind((0, 0))
            kernel.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _DESTROY_GROUP)
        except OSError as problem:
            raise DriverFailed(
                f"network: ended connections can't be followed: {problem.strerror or problem}",
                hint="modprobe nf_conntrack_netlink on the node",
                details={"step": "follow flows"},
            ) from problem
        self._socket = kernel

    def drain(self, wanted: Wanted) -> tuple[list[Tracked], bool]:
        """All that ended since the last read, and whether some are missing."""
        found: list[Tracked] = []
        lost = False
        while self._socket is not None:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as problem:
                if problem.errno != errno.ENOBUFS:
                    break
                lost = True
                continue
            for kind, start, end in _split(data):
                if kind == _FORGOTTEN and data[start] == socket.AF_INET:
                    one = parse_tracked(data, start + 4, end, wanted)
                    if one is not None:
                        found.append(one)
        return found, lost

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _split(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The messages in what was received: kind, and where its body starts and ends."""
    at, size = 0, len(data)
    while at + _HEADER.size <= size:
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > size:
            return
        yield kind, at + _HEADER.size, at + length
        at += length + 3 & ~3


def parse_tracked(data: bytes, at: int, end: int, wanted: Wanted) -> Tracked | None:
    """The connection whose attributes lie there; None for one that isn't ``wanted``."""
    places: dict[int, int] = {}
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return None
        places[kind & _TYPE] = at
        at += length + 3 & ~3
    tuple_, zone = places.get(_ORIGINAL), places.get(_ZONE)
    if tuple_ is None or zone is None:
        return None  # the node's own connections are in no zone
    number = int.from_bytes(data[zone + 4 : zone + 6], "big")
    source, destination = _ADDRESSES.unpack_from(data, tuple_ + 4)
    if not wanted(number, source, destination):
        return None
    (protocol,) = _PROTOCOL.unpack_from(data, tuple_ + 4)
    source_port = destination_port = 0
    if protocol in _WITH_PORTS:
        source_port, destination_port = _PORTS.unpack_from(data, tuple_ + 4)
    id_, started = places.get(_ID), places.get(_TIMESTAMP)
    return Tracked(
        number,
        0 if id_ is None else int.from_bytes(data[id_ + 4 : id_ + 8], "big"),
        protocol,
        source,
        destination,
        source_port,
        destination_port,
        *_count(data, places.get(_COUNTERS_ORIGINAL)),
        *_count(data, places.get(_COUNTERS_REPLY)),
        0.0 if started is None else int.from_bytes(data[started + 8 : started + 16], "big") / 1e9,
    )


def _count(data: bytes, at: int | None) -> tuple[int, int]:
    """Packets and bytes in a counters attribute."""
    if at is None:
        return 0, 0
    packets, count = _COUNTERS.unpack_from(data, at + 4)
    return packets, count
