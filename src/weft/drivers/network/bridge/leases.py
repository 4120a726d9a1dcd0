"""The memory of a segment's DHCP server: its file of leases, those that must go, and the packet that frees one. Pure.

The server has no order for "forget this lease" but a client's own DHCPRELEASE. Without an option for a client's identifier the
server finds the lease by the MAC, so the node can release for a guest that is gone; all others' names stay answered meanwhile.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from ipaddress import IPv4Address
from typing import NamedTuple

from weft.drivers.network.bridge.names import GATEWAY_MAC

SERVER_PORT = 67
_MAGIC = b"\x63\x82\x53\x63"
_MESSAGE, _SERVER, _END = 53, 54, 255
_RELEASE = 7


class DhcpLease(NamedTuple):
    """``name`` is without a domain, "" for none. ``mac`` begins with the type of the hardware, in hex, where a client says that it
    isn't Ethernet ("06-52:54:..."): the server gives it the address of its MAC nevertheless."""

    mac: str
    address: str
    name: str


def render_first_lease(gateway: str) -> str:
    """The file with which a server starts: one lease, of the router itself, that never ends. The server writes its oldest lease
    last, so a file that doesn't end with this one was read while it was being written."""
    return f"0 {GATEWAY_MAC} {gateway} * *\n"


def read_leases(text: str, gateway: str) -> frozenset[DhcpLease] | None:
    """All leases of a file but the router's own; None if it is not whole."""
    if not text.endswith(render_first_lease(gateway)):
        return None
    lines = [line.split(" ") for line in text.splitlines()[:-1]]
    return frozenset(DhcpLease(line[1], line[2], line[3] if line[3] != "*" else "") for line in lines if len(line) > 3)


def list_stale(leases: Collection[DhcpLease], hosts: str, names: str, domain: str) -> list[DhcpLease]:
    """Those that ``hosts`` and ``names``, the server's files, don't allow (any more): of another guest, or with a name that isn't
    at that address. The server names a lease itself, by either file."""
    allowed: dict[tuple[str, str], str] = {}
    for line in hosts.splitlines():
        mac, address, *rest = line.split(",")
        allowed[mac, address] = rest[0] if len(rest) > 1 else ""
    named = {(line.split(" ", 1)[0], name) for line in names.splitlines() for name in line.split(" ")[1:]}

    def is_right(lease: DhcpLease) -> bool:
        name = allowed.get((lease.mac, lease.address))
        return name is not None and (lease.name in ("", name) or (lease.address, f"{lease.name}.{domain}") in named)

    return sorted(lease for lease in leases if not is_right(lease))


def render_release(lease: DhcpLease, gateway: str) -> bytes:
    """A DHCPRELEASE as the lease's client would send it (RFC 2131, 4.4.6), without a client identifier."""
    hardware, _, mac = lease.mac.rpartition("-")
    address = bytes.fromhex(mac.replace(":", ""))
    head = struct.pack("!4B", 1, int(hardware or "1", 16) & 0xFF, len(address), 0)  # a request, 1 is Ethernet, no hops
    fixed = struct.pack("!I4x4s12x16s192x", 1, IPv4Address(lease.address).packed, address)
    server = bytes([_SERVER, 4]) + IPv4Address(gateway).packed
    return head + fixed + _MAGIC + bytes([_MESSAGE, 1, _RELEASE]) + server + bytes([_END])
