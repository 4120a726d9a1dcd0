"""A filter of a device's datagrams: only answers and acknowledgements reach the package.

The package keeps each request for four minutes, 45 MB of one device, though nothing here serves any; it keeps each number of an
option and of a format that it ever saw; and what it can't read it writes to the log at length, as often as it comes.
"""

from __future__ import annotations

import logging
from typing import Any

from aiocoap.transports import simple6

# Devices that have a socket of their own. Beyond it the package closes the oldest one, also while an answer to it is on its way.
MOST_SOCKETS = 6000
_LEAST_BYTES = 4
_EMPTY, _ANSWERS = 0, range(0x40, 0xC0)  # codes: 0.00, and 2.00 up to 5.31
_PAYLOAD, _MOST_OPTION = 0xFF, 0xFFFF
_FORMATS, _FORMAT_BYTES = (12, 17), 2  # the options Content-Format and Accept
log = logging.getLogger("weft.edge.coap")


def is_for_client(data: bytes) -> bool:
    """Whether it is an answer or an acknowledgement, whose options have numbers as CoAP has them (RFC 7252, 3.1). Pure."""
    if len(data) < _LEAST_BYTES or not (data[1] == _EMPTY or data[1] in _ANSWERS):
        return False
    at, number = _LEAST_BYTES + (data[0] & 15), 0
    while at < len(data) and data[at] != _PAYLOAD:
        first, at = data[at], at + 1
        delta, at = _read_more(data, first >> 4, at)
        length, at = _read_more(data, first & 15, at)
        number += delta
        if number > _MOST_OPTION or (number in _FORMATS and length > _FORMAT_BYTES):
            return False
        at += length
    return at <= len(data)


def _read_more(data: bytes, nibble: int, at: int) -> tuple[int, int]:
    """A delta or a length, and what comes after it; more than there can be where it can't be read."""
    size = {13: 1, 14: 2, 15: 0}.get(nibble)
    if size is None:
        return nibble, at
    if size == 0 or at + size > len(data):
        return _MOST_OPTION + 1, at
    return int.from_bytes(data[at : at + size], "big") + (13 if size == 1 else 269), at + size


def bound_package() -> None:
    """Bound what the package takes, for all of this process."""
    simple6._DatagramClientSocketpoolSimple6.max_sockets = MOST_SOCKETS  # 64 otherwise
    simple6._Connection.datagram_received = _take_datagram


def _take_datagram(connection: Any, data: bytes, address: Any) -> None:
    if not is_for_client(data):
        return
    try:
        connection._message_interface._received_datagram(connection, data)
    except Exception as failure:  # whatever it stumbles over: nothing came
        log.debug("a datagram can't be read: %s", type(failure).__name__)
