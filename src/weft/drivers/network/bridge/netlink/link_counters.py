"""The kernel's counters of guests' NICs: one dump of all links of the namespace (RTM_GETSTATS), 0.5 us for each, where a program or
a library would take hundreds of times that.

A link is found by its number, which the kernel gives to no other link soon; numbers are looked up again every few seconds, and for
ports that the dump lacked.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator

from weft.contracts.driver.network import NicCounts

LOOK_UP_EVERY = 25  # reads
WAIT_SECONDS = 1.0  # the kernel answers within microseconds
MOST_BYTES = 1 << 20
_ROUTE = 0
_GET_STATS, _NEW_STATS, _ERROR, _DONE = 94, 92, 2, 3
_REQUEST, _DUMP = 0x1, 0x300
_LINK_64 = 1  # both the filter's bit and the attribute's type
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, process
_BEGIN = struct.Struct("=IH2xII4xI4xHH")  # of an answer: length, type, sequence, process, the link, an attribute
_FAMILY = struct.Struct("=BBHII")
_COUNTS = struct.Struct("=8Q")  # packets in, out, bytes in, out, errors in, out, drops in, out: of the node's end
_COUNTS_AT = 32


class LinkCounters:
    """NicCounters (contracts.driver.network) of the namespace in which it is read first. ``name_link`` gives a port's link."""

    def __init__(self, name_link: Callable[[str], str]) -> None:
        self._name_link = name_link
        self._numbers: dict[str, int] = {}
        self._reads = 0
        self._sequence = 0
        self._socket: socket.socket | None = None

    def read(self, port_ids: Iterable[str]) -> dict[str, NicCounts]:
        """See NicCounters."""
        if self._reads % LOOK_UP_EVERY == 0:
            self._numbers.clear()
        self._reads += 1
        wanted: dict[int, str] = {}
        for port_id in port_ids:
            if (number := self._numbers.get(port_id)) is None:
                number = self._find(port_id)
            if number is not None:
                wanted[number] = port_id
        return self._read(wanted) if wanted else {}

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _find(self, port_id: str) -> int | None:
        try:
            number = self._numbers[port_id] = socket.if_nametoindex(self._name_link(port_id))
        except OSError:  # not here
            return None
        return number

    def _read(self, wanted: dict[int, str]) -> dict[str, NicCounts]:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _ROUTE)
            self._socket.bind((0, 0))
            self._socket.settimeout(WAIT_SECONDS)
        self._sequence += 1
        body = _FAMILY.pack(0, 0, 0, 0, _LINK_64)
        size = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(size, _GET_STATS, _REQUEST | _DUMP, self._sequence, 0) + body)
        found = dict(read_counts(self._receive(self._socket), wanted))
        for port_id in wanted.values() - found.keys():
            self._numbers.pop(port_id, None)
        return found

    def _receive(self, line: socket.socket) -> Iterator[bytes]:
        """The pieces of the answer to the last question; what is left of earlier ones is skipped. Raises OSError."""
        while True:
            data = line.recv(MOST_BYTES)
            if len(data) < _HEADER.size or _HEADER.unpack_from(data)[3] != self._sequence:
                continue
            yield data
            if has_ended(data):
                return


def has_ended(data: bytes) -> bool:
    """Pure: whether these messages have the end of a dump in them. Raises OSError for one that the kernel refused."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, at)[:2]
        if kind == _DONE or length < _HEADER.size:
            return True
        if kind == _ERROR:
            number = -int.from_bytes(data[at + 16 : at + 20], "little", signed=True) or errno.EIO
            raise OSError(number, os.strerror(number))
        at += length + 3 & ~3
    return False


def read_counts(pieces: Iterable[bytes], wanted: dict[int, str]) -> Iterator[tuple[str, NicCounts]]:
    """Pure: the counts of the links with these numbers."""
    for data in pieces:
        at, size = 0, len(data)
        while at + _COUNTS_AT + _COUNTS.size <= size:
            length, kind, _, _, number, _, attribute = _BEGIN.unpack_from(data, at)
            if kind == _NEW_STATS and attribute == _LINK_64 and number in wanted:
                packets_in, packets_out, bytes_in, bytes_out, _, _, drops_in, drops_out = _COUNTS.unpack_from(
                    data, at + _COUNTS_AT
                )
                # What comes in at the node's end is what the guest sent.
                yield (
                    wanted[number],
                    NicCounts(bytes_out, packets_out, drops_out, bytes_in, packets_in, drops_in),
                )
            if length < _HEADER.size:
                return
            at += length + 3 & ~3
