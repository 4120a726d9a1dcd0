"""Packets by which two nodes measure their distance: a probe and its echo, each sealed with a key of the two.

A node's key is derived from the server's secret; the key of two nodes from the key of the asked node and the uid of the asker.
So a node can answer every peer that the server names, without a list of them, and learns no other node's key. An echo is never
larger than its probe, and no one without a key gets one. Standard library only.
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
Coordinates = tuple[float, float, float, float]


def node_key(secret: bytes, uid: str) -> bytes:
    """The key of the node ``uid``, from the server's ``secret``."""
    return hmac.digest(secret, f"echo of {uid}".encode(), hashlib.sha256)


def pair_key(key: bytes, asker: str) -> bytes:
    """The key between ``asker`` and the node whose own key is ``key``."""
    return hmac.digest(key, f"asked by {asker}".encode(), hashlib.sha256)


def seal_probe(key: bytes, asker: str, nonce: bytes) -> bytes:
    """A probe of the node ``asker``; ``key`` is the pair's."""
    return _seal(key, _PROBE + _bytes_of(asker) + nonce + bytes(_PLACE.size))


def read_asker(packet: bytes) -> str | None:
    """The uid of the node that claims to have sent this probe; None for any other packet."""
    if len(packet) != PACKET_BYTES or not packet.startswith(_PROBE):
        return None
    return str(uuid.UUID(bytes=packet[len(_PROBE) : len(_PROBE) + 16]))


def answer_probe(key: bytes, packet: bytes, place: Coordinates) -> bytes | None:
    """The echo of a probe, with the answering node's place; None if the probe wasn't sealed with ``key``."""
    if not _is_sealed(key, packet):
        return None
    return _seal(key, _ECHO + packet[len(_PROBE) : _HEAD] + _PLACE.pack(*place))


def read_nonce(packet: bytes) -> bytes | None:
    """The nonce of the probe that this echo answers; None for any other packet."""
    if len(packet) != PACKET_BYTES or not packet.startswith(_ECHO):
        return None
    return packet[_HEAD - NONCE_BYTES : _HEAD]


def open_echo(key: bytes, packet: bytes) -> Coordinates | None:
    """The answering node's place; None if the echo wasn't sealed with ``key``."""
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
