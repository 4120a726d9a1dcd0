"""Places where receivers may be: strangers' addresses, and those that the fabric's administrator allowed. Never this machine, its
links (metadata services answer there), private addresses, nor a node of the fabric.

A name is resolved once, and the connection goes to the address that was judged: a name that means another one the next time
changes nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Sequence
from typing import Any

from weft.contracts.confinement.public_address import Address, describe_near, find_embedded, is_public

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
SocketAddress = tuple[socket.AddressFamily, Any]  # as a socket takes it


class NotAllowed(OSError):
    """The message names the address, what it is, and how to allow it."""


def find_places(
    host: str, port: int, allowed: Sequence[Network], nodes: Collection[str] = ()
) -> list[tuple[SocketAddress, bool]]:
    """The addresses of ``host`` to connect to, each with whether it had to be allowed; ``nodes`` are those of the fabric's nodes.
    Blocks while the name is resolved. Raises NotAllowed if there are others only, OSError if there is no such name."""
    good: list[tuple[SocketAddress, bool]] = []
    refused = ""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(f"{host[:80]} is not a host's name") from None
    for family, _, _, _, place in found:
        address = ipaddress.ip_address(str(place[0]).partition("%")[0])
        what = describe_closed(address, nodes)
        if not what or any(address in network for network in allowed):
            good.append(((family, place), bool(what)))
        else:
            refused = f"{address} is {what}: for receivers there, start the server with --receivers-allow {address}"
    if not good:
        raise NotAllowed(refused or f"{host} has no address")
    return good


def describe_closed(address: Address, nodes: Collection[str] = ()) -> str:
    """Describe an address that receivers can't be at unless that is allowed; "" for any other."""
    inner = find_embedded(address)
    if inner is not None:
        return describe_closed(inner, nodes)
    if near := describe_near(address):
        return near
    if str(address) in nodes:
        return "a node of this fabric"
    return "" if is_public(address) else "a private address"
