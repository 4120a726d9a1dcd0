"""Speaks netlink itself where a program would be too slow: the forwarding entries and the one nft set that change while a
guest stands still between two nodes. No process is started and nothing is waited for but the kernel's answer.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address

from weft.objects.errors import DriverFailed

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_REQUEST, _ACK, _REPLACE, _CREATE = 0x1, 0x4, 0x100, 0x400
_ERROR = 2
_NEW_NEIGHBOUR, _DEL_NEIGHBOUR = 28, 29
_PERMANENT, _STATIC = 0x80, 0x40
_SELF, _MASTER = 0x02, 0x04
_TO, _MAC = 1, 2
_BATCH_BEGIN, _BATCH_END = 16, 17
_TABLES = 10
_NEW_ELEMENT, _DEL_ELEMENT = _TABLES << 8 | 12, _TABLES << 8 | 14
_NETDEV = 5
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_BATCH = struct.Struct("!BBH")


def place_mac(link: str, mac: str) -> None:
    """The bridge of ``link`` sends frames for ``mac`` there from now on. Raises DriverFailed."""
    _exchange(_NETLINK_ROUTE, _neighbour(_NEW_NEIGHBOUR, link, mac, _STATIC, _MASTER))


def point_overlay(overlay: str, mac: str, node_address: str) -> None:
    """The overlay carries frames for ``mac`` to that node from now on. Raises DriverFailed."""
    to = _attribute(_TO, IPv4Address(node_address).packed)
    _exchange(_NETLINK_ROUTE, _neighbour(_NEW_NEIGHBOUR, overlay, mac, _PERMANENT, _SELF, to))


def forget_overlay(overlay: str, mac: str) -> None:
    """The overlay knows nothing of ``mac`` any more; absent is fine. Raises DriverFailed."""
    _exchange(_NETLINK_ROUTE, _neighbour(_DEL_NEIGHBOUR, overlay, mac, 0, _SELF), errno.ENOENT)


def put_element(table: str, name: str, mac: str) -> None:
    """Add ``mac`` to the set of a netdev table. Raises DriverFailed."""
    _exchange(_NETLINK_NETFILTER, _element(_NEW_ELEMENT, table, name, mac))


def drop_element(table: str, name: str, mac: str) -> None:
    """Remove ``mac`` from the set; a missing element or set is not an error. Raises DriverFailed."""
    _exchange(_NETLINK_NETFILTER, _element(_DEL_ELEMENT, table, name, mac), errno.ENOENT)


def _neighbour(kind: int, link: str, mac: str, state: int, flags: int, more: bytes = b"") -> bytes:
    try:
        index = socket.if_nametoindex(link)
    except OSError as problem:
        raise DriverFailed(f"network: no link {link} on this node", details={"step": "switch a port"}) from problem
    body = struct.pack("=BxxxiHBB", socket.AF_BRIDGE, index, state, flags, 0)
    how = _REPLACE | _CREATE if kind == _NEW_NEIGHBOUR else 0
    return _message(kind, _REQUEST | _ACK | how, body + _attribute(_MAC, _bytes_of(mac)) + more)


def _element(kind: int, table: str, name: str, mac: str) -> bytes:
    key = _attribute(1 | _NESTED, _attribute(1, _bytes_of(mac)))
    elements = _attribute(3 | _NESTED, _attribute(1 | _NESTED, key))
    names = _attribute(1, table.encode() + b"\0") + _attribute(2, name.encode() + b"\0")
    how = _CREATE if kind == _NEW_ELEMENT else 0
    begin, end = (_message(mark, _REQUEST, _BATCH.pack(0, 0, _TABLES)) for mark in (_BATCH_BEGIN, _BATCH_END))
    return begin + _message(kind, _REQUEST | _ACK | how, _BATCH.pack(_NETDEV, 0, 0) + names + elements) + end


def _exchange(family: int, request: bytes, *fine: int) -> None:
    """Send, and read the kernel's first answer: it is there when the call that sent returns."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family) as kernel:
            kernel.bind((0, 0))
            kernel.sendto(request, (0, 0))
            answer = kernel.recv(65536, socket.MSG_DONTWAIT)
        _, kind, _, _, _ = _HEADER.unpack_from(answer)
        problem = -struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _ERROR else 0
    except OSError as failure:
        problem = failure.errno or errno.EIO
    if problem and problem not in fine:
        raise DriverFailed(
            f"network: the port of a migrating guest can't be switched: {os.strerror(problem)}",
            details={"step": "switch a port"},
        )


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _padded(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)


def _attribute(kind: int, value: bytes) -> bytes:
    return _padded(struct.pack("=HH", 4 + len(value), kind) + value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _bytes_of(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
