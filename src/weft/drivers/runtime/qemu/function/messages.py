"""Messages between a cloned machine and its host: datagrams and frames, as ``images/clone/init.c`` has them. Pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

GUEST, HOST = "169.254.100.2", "169.254.100.1"
GUEST_MAC, HOST_MAC = "02:00:00:00:64:02", "02:00:00:00:64:01"
NETMASK = "255.255.255.252"
HOST_PORT = 9000
MOST_FRAME_BYTES = 1 << 17

WOKEN, FRESH, STAND_STILL, MEMORY, TELL_PRINTED = b"W", b"F", b"S", b"M", b"T"
ASKS, DONE, STANDS_STILL = b"Q", b"D", b"P"
PRINTED, INIT_ERROR, ENDED, READY, TROUBLE, OUTPUT_READ = b"o", b"i", b"x", b"r", b"e", b"t"
_KINDS = (PRINTED, INIT_ERROR, ENDED, READY, TROUBLE, OUTPUT_READ)

_SHORT = struct.Struct("<c7xQ")
_FRESH = struct.Struct("<c7xQQ32sII64s")
_GUEST_MESSAGE = struct.Struct("<c7xQQ")
_FRAME = struct.Struct("<cI")
_END = struct.Struct("<iiIIQ")
_NUMBER = struct.Struct("<Q")


class GuestMessage(NamedTuple):
    """A datagram from the guest; ``most_memory`` in bytes where the kind has it."""

    kind: bytes
    number: int
    most_memory: int


class End(NamedTuple):
    """How the runtime ended; ``signal`` 0: by itself, with ``code``."""

    code: int
    signal: int
    out_of_memory: bool
    most_memory: int


def encode_short(kind: bytes, number: int) -> bytes:
    return _SHORT.pack(kind, number)


def encode_fresh(number: int, now_ns: int, seed: bytes, name: str, *, practice: int = 0, park: bool = False) -> bytes:
    """``seed``: 32 bytes that no other machine was ever given. ``name``: its host name, cut to 63 bytes."""
    return _FRESH.pack(FRESH, number, now_ns, seed, practice, park, name.encode()[:63])


def decode_message(datagram: bytes) -> GuestMessage | None:
    """None for a datagram that no guest of ours sends."""
    if len(datagram) != _GUEST_MESSAGE.size:
        return None
    return GuestMessage(*_GUEST_MESSAGE.unpack(datagram))


def decode_end(content: bytes) -> End | None:
    if len(content) != _END.size:
        return None
    code, signal, out_of_memory, _, most_memory = _END.unpack(content)
    return End(code, signal, bool(out_of_memory), most_memory)


def decode_number(content: bytes) -> int:
    """0 for what isn't a number."""
    return int(_NUMBER.unpack(content)[0]) if len(content) == _NUMBER.size else 0


class Frames:
    """Takes bytes as they come, gives whole frames. ``broken``: nothing after this makes sense."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.broken = False

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        self._bytes += data
        frames = []
        while len(self._bytes) >= _FRAME.size and not self.broken:
            kind, size = _FRAME.unpack_from(self._bytes)
            if size > MOST_FRAME_BYTES or kind not in _KINDS:
                self.broken = True
            elif len(self._bytes) < _FRAME.size + size:
                break
            else:
                frames.append((kind, bytes(self._bytes[_FRAME.size : _FRAME.size + size])))
                del self._bytes[: _FRAME.size + size]
        return frames
