"""Reads the kernel's connection tracking over ctnetlink: what it follows now, and what it has just forgotten; makes it forget, and
sets marks.

Layouts: linux/netfilter/nfnetlink_conntrack.h. A program would print megabytes of text for what is read here in milliseconds.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from weft.drivers.network.bridge.dial import enter_namespace
from weft.objects.errors import DriverFailed

_NETFILTER = 12
_CHANGE = 1 << 8  # IPCTNL_MSG_CT_NEW, of one that is there
_DUMP = 1 << 8 | 1  # IPCTNL_MSG_CT_GET
_FORGOTTEN = _FORGET = 1 << 8 | 2  # IPCTNL_MSG_CT_DELETE
_REQUEST, _REQUEST_DUMP = 1, 0x301
_ERROR, _DONE = 2, 3
_DESTROY_GROUP = 3
_SOL_NETLINK, _ADD_MEMBERSHIP, _RCVBUFFORCE = 270, 1, 33
_RECEIVE_BYTES = 1 << 18
_EVENT_BYTES = 8 << 20  # what ended between two reads; what doesn't fit is lost, and counted
_DUMP_SECONDS = 10.0
_MOST_ORDERS = 256  # in one message to the kernel

_ORIGINAL, _REPLY, _MARK, _COUNTERS_ORIGINAL, _COUNTERS_REPLY, _ID, _ZONE, _TIMESTAMP = 1, 2, 8, 9, 10, 12, 18, 20
_MARK_MASK = 21
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

    zone: int  # 0: the node's or router's own
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
    answer_port: int = 0  # where answers to it go: another one than ``source_port`` where it is masqueraded
    mark: int = 0


Wanted = Callable[[int, bytes, bytes], bool]  # zone, source, destination


def read_tracked(wanted: Wanted, namespace: str = "") -> list[Tracked]:
    """Read the IPv4 connections that the kernel follows now, in the node's or a router's namespace. Blocks for milliseconds. Raises
    DriverFailed."""
    return [found for found, _ in _read(wanted, namespace)]


def forget_tracked(
    wanted: Wanted, namespace: str = "", *, but: Callable[[Tracked], bool] = lambda one: False
) -> list[Tracked]:
    """Make the kernel forget these connections ``but`` for some, and say which they were; one that has ended meanwhile is fine.
    Blocks as ``read_tracked``. Raises DriverFailed."""
    return _order("forget flows", _FORGET, wanted, namespace, but)


def mark_tracked(
    wanted: Wanted, bit: int, namespace: str = "", *, but: Callable[[Tracked], bool] = lambda one: False
) -> list[Tracked]:
    """Set ``bit`` in the marks of these connections ``but`` for some, as ``forget_tracked``."""
    mark = b"".join(_ATTRIBUTE.pack(8, kind) + bit.to_bytes(4, "big") for kind in (_MARK, _MARK_MASK))
    return _order("mark flows", _CHANGE, wanted, namespace, but, mark)


def _order(
    step: str, kind: int, wanted: Wanted, namespace: str, but: Callable[[Tracked], bool], more: bytes = b""
) -> list[Tracked]:
    found = [(one, attributes) for one, attributes in _read(wanted, namespace) if not but(one)]
    family = struct.pack("=BBH", socket.AF_INET, 0, 0)
    orders = [
        _HEADER.pack(_BODY + len(names), kind, _REQUEST, 1, 0) + family + names
        for names in (_pick_names(attributes) + more for _, attributes in found)
    ]
    with _reporting(step), _open(namespace) as kernel:
        for at in range(0, len(orders), _MOST_ORDERS):
            kernel.send(b"".join(orders[at : at + _MOST_ORDERS]))
    return [one for one, _ in found]


def _read(wanted: Wanted, namespace: str) -> list[tuple[Tracked, bytes]]:
    """Connections, each with all of its attributes as they came."""
    found: list[tuple[Tracked, bytes]] = []
    with _reporting("read flows"), _open(namespace) as kernel:
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
                    found.append((one, data[start + 4 : end]))


def _open(namespace: str) -> socket.socket:
    """A socket to the kernel's connection tracking of that namespace; "" is the node's own. Raises OSError."""

    def make() -> socket.socket:
        kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        kernel.bind((0, 0))
        return kernel

    if not namespace:
        return make()
    made: list[socket.socket | OSError] = []

    def work() -> None:
        try:
            enter_namespace(namespace)
            made.append(make())
        except OSError as problem:
            made.append(problem)

    thread = threading.Thread(target=work, name="weft-conntrack")  # of its own: it stays in the namespace
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, OSError):
        raise result
    return result


@contextmanager
def _reporting(step: str) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise DriverFailed(
            f"network: {step}: the kernel's table of connections can't be used: {problem.strerror or problem}",
            hint="modprobe nf_conntrack_netlink on the node",
            details={"step": step},
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


def _find_attributes(data: bytes, at: int, end: int) -> dict[int, int] | None:
    """The offset of each attribute, by its kind; None for what isn't well-formed."""
    places: dict[int, int] = {}
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return None
        places[kind & _TYPE] = at
        at += length + 3 & ~3
    return places


def _pick_names(data: bytes) -> bytes:
    """The attributes that identify a connection."""
    places = _find_attributes(data, 0, len(data)) or {}
    starts = [places[kind] for kind in (_ORIGINAL, _ZONE, _ID) if kind in places]
    return b"".join(data[start : start + (_ATTRIBUTE.unpack_from(data, start)[0] + 3 & ~3)] for start in starts)


def parse_tracked(data: bytes, at: int, end: int, wanted: Wanted) -> Tracked | None:
    """The connection whose attributes lie there; None for one that isn't ``wanted``."""
    places = _find_attributes(data, at, end)
    tuple_ = (places or {}).get(_ORIGINAL)
    if places is None or tuple_ is None:
        return None
    zone = places.get(_ZONE)
    number = int.from_bytes(data[zone + 4 : zone + 6], "big") if zone is not None else 0
    source, destination = _ADDRESSES.unpack_from(data, tuple_ + 4)
    if not wanted(number, source, destination):
        return None
    (protocol,) = _PROTOCOL.unpack_from(data, tuple_ + 4)
    source_port = destination_port = answer_port = 0
    if protocol in _WITH_PORTS:
        source_port, destination_port = _PORTS.unpack_from(data, tuple_ + 4)
        if (reply := places.get(_REPLY)) is not None:
            _, answer_port = _PORTS.unpack_from(data, reply + 4)
    id_, started, mark = places.get(_ID), places.get(_TIMESTAMP), places.get(_MARK)
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
        answer_port,
        0 if mark is None else int.from_bytes(data[mark + 4 : mark + 8], "big"),
    )


def _count(data: bytes, at: int | None) -> tuple[int, int]:
    """Packets and bytes in a counters attribute."""
    if at is None:
        return 0, 0
    packets, count = _COUNTERS.unpack_from(data, at + 4)
    return packets, count
