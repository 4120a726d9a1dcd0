"""Ports that programs of the node itself listen on, from ``proc_net_tcp(5)``. Reads the calling thread's network."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal

from weft.contracts.driver.network import Held

TABLES: tuple[tuple[str, Literal["tcp", "udp"]], ...] = (
    ("tcp", "tcp"),
    ("tcp6", "tcp"),
    ("udp", "udp"),
    ("udp6", "udp"),
)
_LISTENS = {"tcp": "0A", "udp": "07"}  # TCP_LISTEN; a socket of UDP that is connected to nobody
_MAPPED = bytes(10) + b"\xff\xff"


def read_held() -> frozenset[Held]:
    """Every socket that IPv4 packets can reach. Blocks for about a microsecond for each socket."""
    found: set[Held] = set()
    for name, protocol in TABLES:
        file = Path("/proc/thread-self/net", name)
        if file.exists():  # a kernel without IPv6 has no tables of it
            found |= read_table(file.read_text(), protocol)
    return frozenset(found)


def read_table(text: str, protocol: Literal["tcp", "udp"]) -> set[Held]:
    """Pure. ``text`` of one of the kernel's tables."""
    found = set()
    for line in text.splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if state == _LISTENS[protocol] and (address := _read_address(local.rpartition(":")[0])) is not None:
            found.add(Held(protocol, int(local.rpartition(":")[2], 16), address))
    return found


def _read_address(written: str) -> str | None:
    """None for one of IPv6 alone."""
    words = (int(written[at : at + 8], 16) for at in range(0, len(written), 8))
    packed = b"".join(struct.pack("=I", word) for word in words)
    if not any(packed):
        return ""
    if len(packed) == 4:
        return socket.inet_ntoa(packed)
    return str(IPv4Address(packed[12:])) if packed[:12] == _MAPPED else None
