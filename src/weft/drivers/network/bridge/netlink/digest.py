"""Whether anything that ``BridgeNetwork.heal`` looks at has changed: one digest of the links, addresses, forwarding entries,
routes, neighbours, settings and nft tables of the node's namespace and of its routers'. The kernel is asked by netlink, which takes
milliseconds where the programs take a core for a quarter of a second.

Layouts: linux/rtnetlink.h, if_link.h, neighbour.h and netfilter/nf_tables.h. Of each object only what ``plan`` reads is in it: not
its counters, nor what a bridge learns.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from weft.drivers.network.bridge.dial import enter_namespace
from weft.drivers.network.bridge.kernel import LOOSE, NAMESPACES

_ROUTE, _NETFILTER = 0, 12
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_NEIGHBOUR = 18, 22, 26, 30
_GET_GENERATION = 10 << 8 | 16  # of nftables: a number that each change raises
_UP = 1
_IFNAME, _ADDRESS, _MTU, _LINK, _MASTER, _LINKINFO, _ALIAS, _EXTENDED = 3, 1, 4, 5, 10, 18, 20, 29
_SKIP_STATISTICS = 8
_KIND, _DATA, _SLAVE_DATA = 1, 2, 5
_PORT_FLAGS = (8, 9)  # of a bridge's port: whether it learns, and floods
_TO, _MAC, _NEIGHBOUR_MASTER = 1, 2, 9
_STATIC, _PERMANENT = 0x40, 0x80
_TYPE = 0x3FFF
_RECEIVE_BYTES, _ANSWER_SECONDS = 1 << 18, 5.0
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_LINK_BODY, _NEIGHBOUR_BODY = struct.Struct("=BxHiII"), struct.Struct("=BxxxiHBB")
_INSIDE = ("net/ipv4/ip_forward", LOOSE)  # settings of a router

Attributes = dict[int, bytes]


def digest_state(routers: Iterable[str], settings: Iterable[str]) -> bytes:
    """``routers``: their namespaces; ``settings``: files below /proc/sys of the node. Blocks for milliseconds. Raises OSError."""
    found: list[bytes | OSError] = []

    def work() -> None:
        try:
            found.append(_digest(routers, settings))
        except OSError as problem:
            found.append(problem)

    thread = threading.Thread(target=work, name="weft-digest")  # of its own: it enters one namespace after the other
    thread.start()
    thread.join()
    (result,) = found
    if isinstance(result, OSError):
        raise result
    return result


def _digest(routers: Iterable[str], settings: Iterable[str]) -> bytes:
    seen = hashlib.sha256()
    for kind, family, pick in ((_GET_LINK, 0, _pick_link), (_GET_ADDRESS, socket.AF_INET, _pick_address)):
        seen.update(_take(kind, family, pick))
    seen.update(_take(_GET_NEIGHBOUR, socket.AF_BRIDGE, _pick_entry))
    seen.update(_read_generation() + _read_settings(settings))
    for router in routers:
        there = os.stat(NAMESPACES / router)
        seen.update(f"{router} {there.st_dev} {there.st_ino}".encode())
        enter_namespace(router)
        seen.update(_take(_GET_LINK, 0, _pick_link))
        seen.update(_take(_GET_ADDRESS, socket.AF_INET, _pick_address))
        seen.update(_take(_GET_ROUTE, socket.AF_INET, _pick_route))
        seen.update(_take(_GET_NEIGHBOUR, socket.AF_INET, _pick_neighbour))
        seen.update(_read_generation() + _read_settings(_INSIDE))
    return seen.digest()


def _read_settings(paths: Iterable[str]) -> bytes:
    """Those of the calling thread's namespace; one that isn't there has no value."""
    values = []
    for path in paths:
        try:
            values.append((Path("/proc/sys") / path).read_bytes())
        except FileNotFoundError:
            values.append(b"?")
    return b"".join(values)


def _read_generation() -> bytes:
    """The number of the nft tables as they are, in the calling thread's namespace."""
    for body in _ask(_NETFILTER, _GET_GENERATION, _REQUEST, struct.pack("=BBH", 0, 0, 0)):
        return _attributes(body, 4).get(1, b"")
    return b""


def _take(kind: int, family: int, pick: Callable[[bytes], bytes]) -> bytes:
    """Take what ``pick`` finds in each object of a dump, in one order."""
    body = struct.pack("=B15x", family) if kind != _GET_LINK else _LINK_BODY.pack(family, 0, 0, 0, 0)
    if kind == _GET_LINK:
        body += _ATTRIBUTE.pack(8, _EXTENDED) + struct.pack("=I", _SKIP_STATISTICS)
    objects = sorted(filter(None, map(pick, _ask(_ROUTE, kind, _REQUEST | _DUMP, body))))
    return b"%d %d\n" % (kind, len(objects)) + b"\n".join(objects)


def _pick_link(body: bytes) -> bytes:
    _, _, index, flags, _ = _LINK_BODY.unpack_from(body)
    found = _attributes(body, _LINK_BODY.size)
    info = _attributes(found.get(_LINKINFO, b""))
    kind = info.get(_KIND, b"").rstrip(b"\0")
    port = _attributes(info.get(_SLAVE_DATA, b""))
    own = [found.get(one, b"") for one in (_IFNAME, _ADDRESS, _MTU, _LINK, _MASTER, _ALIAS)]
    data = info.get(_DATA, b"") if kind == b"vxlan" else b""  # a bridge's has clocks in it
    return repr((index, flags & _UP, own, kind, data, [port.get(one) for one in _PORT_FLAGS])).encode()


def _pick_address(body: bytes) -> bytes:
    _, prefix, _, _, index = struct.unpack_from("=BBBBI", body)
    found = _attributes(body, 8)
    return repr((index, prefix, found.get(1), found.get(2))).encode()


def _pick_route(body: bytes) -> bytes:
    found = _attributes(body, 12)  # without how often a cached one was used
    return repr((body[:12], sorted((one, value) for one, value in found.items() if one != 12))).encode()


def _pick_entry(body: bytes) -> bytes:
    """A forwarding entry of a bridge or an overlay, but for those that a bridge has learned."""
    _, index, state, _, _ = _NEIGHBOUR_BODY.unpack_from(body)
    found = _attributes(body, _NEIGHBOUR_BODY.size)
    if _TO not in found and not (_NEIGHBOUR_MASTER in found and state & (_STATIC | _PERMANENT)):
        return b""
    return repr((index, state, *(found.get(one) for one in (_TO, _MAC, _NEIGHBOUR_MASTER)))).encode()


def _pick_neighbour(body: bytes) -> bytes:
    return _pick_entry(body) if _NEIGHBOUR_BODY.unpack_from(body)[2] & _PERMANENT else b""


def _attributes(data: bytes, at: int = 0) -> Attributes:
    found: Attributes = {}
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE] = data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4
    return found


def _ask(family: int, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """The bodies of the kernel's answers."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family) as kernel:
        kernel.settimeout(_ANSWER_SECONDS)
        kernel.bind((0, 0))
        kernel.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        while True:
            data, at = kernel.recv(_RECEIVE_BYTES), 0
            while at + _HEADER.size <= len(data):
                length, answer, _, _, _ = _HEADER.unpack_from(data, at)
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    raise OSError(-struct.unpack_from("=i", data, at + _HEADER.size)[0], "the kernel refused")
                yield data[at + _HEADER.size : at + length]
                at += length + -length % 4
            if not flags & _DUMP:
                return
