"""Packets by which two nodes measure the bandwidth between them: a question, a train of large packets, and what arrived of it. Each
is sealed with the key of the two (``trust/probe/echo.py``).

The asked node only ever answers with small packets, each no larger than what it answers; and the asking one sends its train only
where the server said its peer is, once that has agreed to this very question. So no stranger makes a node send, and none adds to a
train or makes up what arrived. Standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import uuid
from typing import Literal

NONCE_BYTES, _MAC_BYTES = 8, 16
CARS = 32
CAR_BYTES = 1_372  # a packet of 1,400 bytes with the headers of UDP and IP: it passes tunnels, too
WIRE_BYTES = CAR_BYTES + 28 + 14  # and that of Ethernet
_MAGIC = b"weft="
_HEAD = struct.Struct("!5sc16s8sB")  # magic, sort, the asker's uid, nonce, number
_RESULT = struct.Struct("!dH")  # Mbit/s, packets that arrived
_SMALL_BYTES = _HEAD.size + _RESULT.size + _MAC_BYTES
Sort = Literal["ask", "go", "car", "end", "done"]
_SORTS: dict[Sort, bytes] = {"ask": b"a", "go": b"g", "car": b"c", "end": b"e", "done": b"d"}
_BY_LETTER = {letter: sort for sort, letter in _SORTS.items()}
GO, BUSY, OFF = 0, 1, 2  # the number of a ``go``


class Packet:
    """Claims of a packet; ``is_sealed`` says whether it may make them."""

    __slots__ = ("_data", "asker", "nonce", "number", "sort")

    def __init__(self, data: bytes, sort: Sort, asker: str, nonce: bytes, number: int) -> None:
        self._data, self.sort, self.asker, self.nonce, self.number = data, sort, asker, nonce, number

    def is_sealed(self, key: bytes) -> bool:
        body, mac = self._data[:-_MAC_BYTES], self._data[-_MAC_BYTES:]
        return hmac.compare_digest(mac, _mac(key, body))

    @property
    def result(self) -> tuple[float, int]:
        """Result in a ``done``: the rate in Mbit/s (0: unknown), and how many packets of the train arrived."""
        rate, count = _RESULT.unpack_from(self._data, _HEAD.size)
        return rate, count


def is_ours(data: bytes) -> bool:
    """Whether it looks like a packet of this sort at all."""
    return data.startswith(_MAGIC)


def read_packet(data: bytes) -> Packet | None:
    """None for what is none of these packets."""
    if len(data) not in (_SMALL_BYTES, CAR_BYTES):
        return None
    magic, letter, asker, nonce, number = _HEAD.unpack_from(data)
    sort = _BY_LETTER.get(letter)
    if magic != _MAGIC or sort is None or (len(data) == CAR_BYTES) != (sort == "car"):
        return None
    return Packet(data, sort, str(uuid.UUID(bytes=asker)), nonce, number)


def seal(
    key: bytes, sort: Sort, asker: str, nonce: bytes, number: int = 0, result: tuple[float, int] = (0.0, 0)
) -> bytes:
    """A packet about the question ``nonce`` of node ``asker``; ``key`` is the pair's."""
    head = _HEAD.pack(_MAGIC, _SORTS[sort], uuid.UUID(asker).bytes, nonce, number)
    body = head + (bytes(CAR_BYTES - _HEAD.size - _MAC_BYTES) if sort == "car" else _RESULT.pack(*result))
    return body + _mac(key, body)


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)[:_MAC_BYTES]
