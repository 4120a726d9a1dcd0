"""The machine's own addresses, from ``netdevice(7)``."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from ipaddress import IPv4Address

_SIOCGIFCONF = 0x8912
_IFREQ = struct.Struct("16s4x4s16x")  # a name and a sockaddr_in, padded to the union's size on 64 bits
_MOST = 65536


def read_own_addresses() -> list[str]:
    """Every IPv4 address of the calling thread's network, in order, but for the loopback's and link-local ones, which no other
    machine reaches."""
    found = sorted({IPv4Address(packed) for packed in _read_all()})
    return [str(a) for a in found if not (a.is_loopback or a.is_link_local or a.is_unspecified or a.is_multicast)]


def _read_all() -> list[bytes]:
    count = 64
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        while True:
            buffer = array.array("B", bytes(count * _IFREQ.size))
            place, _ = buffer.buffer_info()
            filled = fcntl.ioctl(asked, _SIOCGIFCONF, struct.pack("iP", len(buffer), place))
            size = struct.unpack("iP", filled)[0]
            if size < len(buffer) or count >= _MOST:  # a full one may have left some out
                return [packed for _, packed in _IFREQ.iter_unpack(buffer.tobytes()[:size])]
            count *= 2
