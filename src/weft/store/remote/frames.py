"""Calls and answers as frames, and what both ends of the socket do alike: put a stream together, send in few writes.

A frame is a length of four bytes (big endian) and a body of MessagePack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import cast

import msgspec

from weft.contracts.store import Compacted, LimitExceeded, PreconditionFailed, StoreFull
from weft.objects.errors import InvalidInput, StoreUnavailable, WeftError, error_from_dict
from weft.store.remote.wire import Call, Failed, StoreAnswer

_ERRORS: dict[str, type[WeftError]] = {
    cls.__name__: cls for cls in (Compacted, LimitExceeded, StoreFull, StoreUnavailable, InvalidInput)
}


def error_to_answer(id: int, error: WeftError) -> Failed:
    """The answer that carries ``error`` to the caller."""
    if isinstance(error, PreconditionFailed):
        return Failed(id, type(error).__name__, error.to_dict(), error.failed, error.current_revision)
    return Failed(id, type(error).__name__, error.to_dict())


def answer_to_error(answer: Failed) -> WeftError:
    """The error the server raised, of the same class where the contract names it."""
    if answer.failed is not None:
        return PreconditionFailed(answer.failed, answer.current_revision)
    cls = _ERRORS.get(answer.error)
    if cls is None:
        return error_from_dict(answer.fields)
    fields = {name: value for name, value in answer.fields.items() if name != "family"}  # the class says it
    return cls(fields.pop("message"), **fields)


HEAD_BYTES = 4
_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: Call | StoreAnswer) -> bytes:
    """One message as a frame; raises OverflowError above 4 GiB."""
    body = _encoder.encode(message)
    return len(body).to_bytes(HEAD_BYTES, "big") + body


class BadFrame(Exception):
    """The other side does not speak this protocol; the connection must be closed."""


class FrameReader:
    """Puts a byte stream together into frames. Feed it what arrives; it gives each frame once it is complete."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies of the frames that ``data`` completes. Raises BadFrame for one over the limit."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEAD_BYTES:
                size = int.from_bytes(buffer[start : start + HEAD_BYTES], "big")
                if size > self._max_bytes:
                    raise BadFrame(f"a frame of {size} bytes: at most {self._max_bytes}")
                end = start + HEAD_BYTES + size
                if len(buffer) < end:
                    break
                body = bytes(memoryview(buffer)[start + HEAD_BYTES : end])
                start = end
                yield body
        finally:
            del buffer[:start]


class FrameProtocol(asyncio.Protocol):
    """One end of a connection. ``take`` gets each body; it raises MsgspecError for one that can't be read."""

    def __init__(self, max_bytes: int, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._frames = FrameReader(max_bytes)
        self._outgoing: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                self._take(body)
        except (BadFrame, msgspec.MsgspecError):
            self.transport.abort()

    def send_frame(self, frame: bytes) -> None:
        """Send ``frame`` soon: what is sent in one turn of the loop leaves in one write."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self.flush)
        self._outgoing.append(frame)

    def flush(self) -> None:
        """Hand the waiting frames to the transport."""
        if self._outgoing and not self.transport.is_closing():
            self.transport.write(b"".join(self._outgoing))
        self._outgoing.clear()
