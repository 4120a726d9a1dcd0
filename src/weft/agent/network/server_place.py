"""The place of the server: what it reports of itself, and where this node reaches it. No guest reaches its machine unless its
network opens that."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from urllib.parse import urlsplit

from weft.protocol.report import ServerPlace


def locate(places: Iterable[str], before: ServerPlace) -> ServerPlace:
    """Resolve the names in ``places`` (HOST:PORT, of the API and its streams) to their addresses now; with all of ``before`` if one
    doesn't. Blocks."""
    found: set[IPv4Address] = set()
    ports: set[int] = set()
    lost = False
    for place in places:
        at = urlsplit(f"//{place}")
        ports.add(at.port or 443)
        if ":" in (at.hostname or ""):
            continue  # an address of IPv6, to which no guest has a way
        try:
            infos = socket.getaddrinfo(at.hostname, None, socket.AF_INET, socket.SOCK_STREAM)
        except OSError:
            lost = True
            continue
        found.update(IPv4Address(info[4][0]) for info in infos)
    here = ServerPlace([f"{address}/32" for address in sorted(found) if not address.is_loopback], sorted(ports))
    return join(before, here) if lost else here


def join(*places: ServerPlace) -> ServerPlace:
    """All their addresses, and all their ports. Pure."""
    ranges = collapse_addresses(IPv4Network(cidr) for place in places for cidr in place.ranges)
    return ServerPlace(
        [str(range_) for range_ in ranges],
        sorted({port for place in places for port in place.api}),
        sorted({port for place in places for port in place.functions}),
    )
