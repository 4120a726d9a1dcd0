"""MQTT 5 packets, as far as a client needs them: written, and read out of a stream of bytes. Pure.

Only QoS 0 and 1. Properties of what is read are skipped, but for how many unacknowledged messages the server takes.
"""

from __future__ import annotations

import struct

import msgspec

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 9, 13, 14
PING = b"\xc0\x00"
GOODBYE = b"\xe0\x00"
MOST_BYTES = 128 << 10  # of a packet that comes: the broker takes smaller messages only
_SESSION_EXPIRY, _RECEIVE_MAXIMUM, _MESSAGE_EXPIRY, _MOST_PACKET = 0x11, 0x21, 0x02, 0x27
_NO_LOCAL = 0x04
REFUSALS = {
    0x80: "unspecified error", 0x84: "it doesn't speak MQTT 5", 0x85: "client id refused", 0x86: "wrong user or password",
    0x87: "not authorised", 0x88: "the server is unavailable", 0x89: "the server is busy", 0x8A: "banned",
    0x8E: "another client has the same id", 0x95: "packet too large", 0x97: "quota exceeded",
}  # fmt: skip


class Broken(Exception):
    """The bytes are not MQTT, or too many."""


class Publish(msgspec.Struct, frozen=True):
    topic: bytes
    payload: bytes
    id: int  # 0: no acknowledgement is awaited
    retained: bool


def _frame(first: int, body: bytes) -> bytes:
    length, head = len(body), bytearray((first,))
    while True:
        length, part = divmod(length, 128)
        head.append(part | 0x80 if length else part)
        if not length:
            return bytes(head) + body


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("!H", len(data)) + data


def write_connect(
    client: str,
    user: str,
    password: str,
    *,
    keep_alive: int,
    session_seconds: int,
    clean: bool = False,
    unacknowledged: int = 1000,
) -> bytes:
    """``session_seconds``: how long the server keeps what it has for the client, once it is away."""
    properties = struct.pack(
        "!BIBHBI", _SESSION_EXPIRY, session_seconds, _RECEIVE_MAXIMUM, unacknowledged, _MOST_PACKET, MOST_BYTES
    )
    flags = 0x02 * clean | 0x80 * bool(user) | 0x40 * bool(password)
    body = (
        _text("MQTT")
        + struct.pack("!BBH", 5, flags, keep_alive)
        + bytes((len(properties),))
        + properties
        + _text(client)
    )
    if user:
        body += _text(user)
    if password:
        body += _text(password)
    return _frame(0x10, body)


def write_subscribe(id: int, topics: list[str], qos: int = 1, *, own: bool = True) -> bytes:
    """Write a SUBSCRIBE. Without ``own`` the client doesn't receive what it publishes itself."""
    options = bytes((qos if own else qos | _NO_LOCAL,))
    return _frame(0x82, struct.pack("!HB", id, 0) + b"".join(_text(topic) + options for topic in topics))


def write_publish(
    topic: str | bytes, payload: bytes, *, id: int = 0, retain: bool = False, expiry_seconds: int = 0
) -> bytes:
    """QoS 1 with an ``id``, else 0. ``expiry_seconds``: the server drops it when it couldn't be delivered for so long; 0: never."""
    properties = struct.pack("!BI", _MESSAGE_EXPIRY, expiry_seconds) if expiry_seconds else b""
    body = _text(topic) + (struct.pack("!H", id) if id else b"") + bytes((len(properties),)) + properties + payload
    return _frame(0x30 | (0x02 if id else 0) | (0x01 if retain else 0), body)


_pack_puback = struct.Struct("!HH").pack


def write_puback(id: int) -> bytes:
    return _pack_puback(0x4002, id)


class Reader:
    """Cuts a stream into packets: (type, flags, body)."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._rest = b""
        self._most = most_bytes

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Raises Broken for a packet that is longer than it may be."""
        if self._rest:
            data = self._rest + data
        at, size, packets = 0, len(data), []
        while size - at >= 2:
            length, place, shift = 0, at + 1, 0
            while True:
                if place >= size:
                    length = -1
                    break
                part = data[place]
                place += 1
                length |= (part & 0x7F) << shift
                if not part & 0x80:
                    break
                shift += 7
                if shift > 21:
                    raise Broken("a length of more than four bytes")
            if length > self._most:
                raise Broken(f"a packet of {length} bytes")
            if length < 0 or size - place < length:
                break
            packets.append((data[at] >> 4, data[at] & 0x0F, data[place : place + length]))
            at = place + length
        self._rest = data[at:]
        return packets


def read_publish(flags: int, body: bytes) -> Publish:
    """Raises Broken."""
    try:
        end = 2 + ((body[0] << 8) | body[1])
        id = 0
        at = end
        if flags & 0x06:
            id = (body[at] << 8) | body[at + 1]
            at += 2
        length = body[at]  # of properties: nearly always one byte
        if length & 0x80:
            length, at = _read_length(body, at)
        else:
            at += 1
    except IndexError:
        raise Broken("a message that is cut off") from None
    at += length
    if at > len(body) or end > len(body):
        raise Broken("a message that is cut off")
    return Publish(body[2:end], body[at:], id, flags & 1 == 1)


def read_reason(body: bytes, at: int) -> int:
    return body[at] if len(body) > at else 0


def _read_length(body: bytes, at: int) -> tuple[int, int]:
    length = shift = 0
    while True:
        part = body[at]
        at += 1
        length |= (part & 0x7F) << shift
        if not part & 0x80:
            return length, at
        shift += 7
        if shift > 21:
            raise Broken("a length of more than four bytes")
