"""What nodes ask each other to learn how far apart they are: a probe and its echo, each sealed with a key of the two.

A node's key follows from the server's secret; the key of two nodes from the key of the one that is asked and the uid of
the one that asks. So a node can answer all whom the server sent, without knowing any of them, and knows nobody else's key.
An echo is never larger than its probe, and nobody without a key gets one. Standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import uuid

_PROBE, _ECHO = b"weft?1", b"weft!1"
NONCE_BYTES, _MAC_BYTES = 8, 16
_PLACE = struct.Struct("!4f")  # x, y, height, error
_HEAD = len(_PROBE) + 16 + NONCE_BYTES
PACKET_BYTES = _HEAD + _PLACE.size + _MAC_BYTES
Place = tuple[float, float, float, float]


def node_key(secret: bytes, uid: str) -> bytes:
    """The key of the node ``uid``, of the server's ``secret``."""
    return hmac.digest(secret, f"echo of {uid}".encode(), hashlib.sha256)


def pair_key(key: bytes, asker: str) -> bytes:
    """The key that ``asker`` asks with the node whose own key is ``key``."""
    return hmac.digest(key, f"asked by {asker}".encode(), hashlib.sha256)


def seal_probe(key: bytes, asker: str, nonce: bytes) -> bytes:
    """A probe of the node ``asker``; ``key`` is of the two."""
    return _seal(key, _PROBE + _bytes_of(asker) + nonce + bytes(_PLACE.size))


def read_asker(packet: bytes) -> str | None:
    """Who says to have sent this probe; None if it is none."""
    if len(packet) != PACKET_BYTES or not packet.startswith(_PROBE):
        return None
    return str(uuid.UUID(bytes=packet[len(_PROBE) : len(_PROBE) + 16]))


def answer_probe(key: bytes, packet: bytes, place: Place) -> bytes | None:
    """The echo of a probe, with the place of the node that answers; None if it wasn't sealed with ``key``."""
    if not _is_sealed(key, packet):
        return None
    return _seal(key, _ECHO + packet[len(_PROBE) : _HEAD] + _PLACE.pack(*place))


def read_nonce(packet: bytes) -> bytes | None:
    """Which probe this is the echo of; None if it is none."""
    if len(packet) != PACKET_BYTES or not packet.startswith(_ECHO):
        return None
    return packet[_HEAD - NONCE_BYTES : _HEAD]


def open_echo(key: bytes, packet: bytes) -> Place | None:
    """The place of the node that answered; None if it wasn't sealed with ``key``."""
    if not _is_sealed(key, packet):
        return None
    x, y, height, error = _PLACE.unpack_from(packet, _HEAD)
    return x, y, height, error


def _seal(key: bytes, body: bytes) -> bytes:
    return body + hmac.digest(key, body, hashlib.sha256)[:_MAC_BYTES]


def _is_sealed(key: bytes, packet: bytes) -> bool:
    body, mac = packet[:-_MAC_BYTES], packet[-_MAC_BYTES:]
    return hmac.compare_digest(mac, hmac.digest(key, body, hashlib.sha256)[:_MAC_BYTES])


def _bytes_of(uid: str) -> bytes:
    return uuid.UUID(uid).bytes
