"""Puts an instance behind its node's egress endpoint in a network: one veth pair, two addresses, a route.

Speaks netlink itself: programs would take a third of a cold start. The kernel is the only record: a link's number is its name in
the egress endpoint, and both ends go when either namespace does.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Network

from weft.contracts.driver.function import EgressEndpoint
from weft.contracts.driver.network import BEHIND
from weft.drivers.linux.syscalls import CLONE_NEWNET, enter, unshare

DEVICE = "eth0"
# Link-local: no network's range can be it. Two for each instance; kept clear of a machine's own link, and of 169.254.169.254.
LINKS = IPv4Network("169.254.192.0/19")
MOST_LINKS = LINKS.num_addresses // 2

_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400
_NEW_LINK, _DELETE_LINK, _NEW_ADDRESS, _NEW_ROUTE, _ERROR = 16, 17, 20, 24, 2
_IFF_UP = 1
_NAME, _MTU, _LINK_INFO, _NAMESPACE_FD = 3, 4, 18, 28
_KIND, _DATA, _PEER = 1, 2, 1
_ADDRESS, _LOCAL = 1, 2
_GATEWAY, _OUT = 5, 4
_MAIN_TABLE, _STATIC, _UNICAST = 254, 4, 1
_HEADER = struct.Struct("=IHHII")
_FIRST_INDEX, _INSIDE_INDEX = 1000, 2  # of the link's two ends, each in its namespace
_numbers = itertools.count()


def render_resolver(egress_endpoint: EgressEndpoint) -> str:
    """Pure. The resolv.conf of an instance behind this egress endpoint."""
    return f"nameserver {egress_endpoint.name_server}\nsearch {egress_endpoint.domain}\n"


def name_files(egress_endpoint: EgressEndpoint | None) -> dict[str, str]:
    """Pure. The files, by path, that give an instance its name servers."""
    return {} if egress_endpoint is None else {"etc/resolv.conf": render_resolver(egress_endpoint)}


def enter_new_network(egress_endpoint: EgressEndpoint | None) -> socket.socket | None:
    """Put this thread, and what it starts, into a network namespace of its own; with an egress endpoint the namespace has a
    route out, and ``cut_off`` takes the returned link. Raises OSError."""
    if egress_endpoint is None:
        unshare(CLONE_NEWNET)
        return None
    there = os.open(egress_endpoint.namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(there, CLONE_NEWNET)
    finally:
        os.close(there)
    with _open_netlink() as outside:
        unshare(CLONE_NEWNET)
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            number = _link(outside, here, egress_endpoint.mtu)
        finally:
            os.close(here)
        near, far = LINKS[2 * number], LINKS[2 * number + 1]
        _ask(outside, _address(_FIRST_INDEX + number, near))
    inside = _open_netlink()
    try:
        _ask(inside, _message(_NEW_LINK, 0, _interface(_INSIDE_INDEX, up=True)))
        _ask(inside, _address(_INSIDE_INDEX, far))
        _ask(inside, _default_route(_INSIDE_INDEX, near))
    except BaseException:
        inside.close()
        raise
    return inside


def cut_off(way_out: socket.socket) -> None:
    """Remove the link now; open connections may keep its namespace for minutes."""
    with way_out, contextlib.suppress(OSError):
        _ask(way_out, _message(_DELETE_LINK, 0, _interface(_INSIDE_INDEX, up=False)))


def _link(outside: socket.socket, here: int, mtu: int) -> int:
    """Make both ends of a link with a number that no other link has; returns the number."""
    for _ in range(MOST_LINKS):
        number = next(_numbers) % MOST_LINKS
        try:
            _ask(outside, _pair(number, here, mtu))
            return number
        except OSError as problem:
            if problem.errno not in (errno.EEXIST, errno.EBUSY):
                raise
    raise OSError(errno.EADDRNOTAVAIL, f"all {MOST_LINKS} links to its network are taken on this node")


def _pair(number: int, here: int, mtu: int) -> bytes:
    size = _attribute(_MTU, struct.pack("=I", mtu))
    peer = _interface(_INSIDE_INDEX, up=False) + _attribute(_NAME, DEVICE.encode() + b"\0") + size
    peer += _attribute(_NAMESPACE_FD, struct.pack("=I", here))
    info = _attribute(_KIND, b"veth\0") + _attribute(_DATA, _attribute(_PEER, peer))
    own = _attribute(_NAME, f"{BEHIND}{number}".encode() + b"\0") + size
    body = _interface(_FIRST_INDEX + number, up=True) + own + _attribute(_LINK_INFO, info)
    return _message(_NEW_LINK, _CREATE | _EXCLUSIVE, body)


def _interface(index: int, *, up: bool) -> bytes:
    """The interface part of a message. Of a new pair only the near end can be up: the other one isn't connected yet."""
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, _IFF_UP if up else 0, _IFF_UP if up else 0)


def _address(index: int, address: IPv4Address) -> bytes:
    body = struct.pack("=BBBBI", socket.AF_INET, 31, 0, 0, index)
    body += _attribute(_ADDRESS, address.packed) + _attribute(_LOCAL, address.packed)
    return _message(_NEW_ADDRESS, _CREATE | _EXCLUSIVE, body)


def _default_route(index: int, gateway: IPv4Address) -> bytes:
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _MAIN_TABLE, _STATIC, 0, _UNICAST, 0)
    body += _attribute(_GATEWAY, gateway.packed) + _attribute(_OUT, struct.pack("=I", index))
    return _message(_NEW_ROUTE, _CREATE | _EXCLUSIVE, body)


def _open_netlink() -> socket.socket:
    """It stays in the namespace that this thread is in now."""
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    kernel.bind((0, 0))
    return kernel


def _ask(kernel: socket.socket, request: bytes) -> None:
    """Send, and read the answer, which is there when the call that sent returns. Raises OSError."""
    kernel.sendto(request, (0, 0))
    answer = kernel.recv(65536, socket.MSG_DONTWAIT)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    problem = -struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _ERROR else errno.EIO
    if problem:
        raise OSError(problem, f"its network: {os.strerror(problem)}")


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _padded(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, 1, 0) + body)


def _attribute(kind: int, value: bytes) -> bytes:
    return _padded(struct.pack("=HH", 4 + len(value), kind) + value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
