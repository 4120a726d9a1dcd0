"""The frames between clients, gateway and agents. Pure, except for the functions that read from a stream.

A frame is type u8, length u32 (big endian), payload of at most 64 KiB. A payload is raw bytes or one JSON document.
A stream ends with EXIT or ERROR; one that closes without either was cut. The receiver of EXIT or ERROR closes the
connection and the sender waits for that: closing first may discard bytes that are still on their way.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Annotated, Any

import msgspec

from weft.objects.errors import InvalidInput, Unavailable, WeftError, error_from_dict

MAX_PAYLOAD_BYTES = 64 * 1024
HEADER = struct.Struct(">BI")
REPLACED = "replaced"  # the reason of an ERROR to an agent whose node has connected anew


class FrameType(IntEnum):
    HELLO = 0
    DATA_IN = 1  # stdin, or raw bytes to the guest
    DATA_OUT = 2  # stdout, or raw bytes from the guest
    STDERR = 3
    END_IN = 4
    EXIT = 5
    ERROR = 6
    RESIZE = 7
    PING = 8
    # Between gateway and agent, for an exec session that outlives its connection; the first two also to clients that can go on:
    SESSION = 9
    ACK = 10
    DETACHED = 11
    HANG_UP = 12


class Frame(msgspec.Struct, frozen=True):
    type: int
    payload: bytes = b""

    def json(self) -> dict[str, Any]:
        """The payload as a JSON object. Raises InvalidInput."""
        try:
            return msgspec.json.decode(self.payload, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise InvalidInput(f"a frame of type {self.type} holds no JSON object: {error}") from None

    def error(self) -> WeftError:
        """The error that an ERROR frame carries."""
        return error_from_dict(self.json())


def encode_frame(type_: int, payload: bytes = b"") -> bytes:
    """One frame; raises InvalidInput for a payload over 64 KiB (see ``encode_data``)."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise _too_large(len(payload))
    return HEADER.pack(type_, len(payload)) + payload


def encode_data(type_: int, data: bytes) -> Iterator[bytes]:
    """``data`` of any length as frames; none if it is empty."""
    view = memoryview(data)
    for start in range(0, len(data), MAX_PAYLOAD_BYTES):
        piece = view[start : start + MAX_PAYLOAD_BYTES]
        yield HEADER.pack(type_, len(piece)) + piece


def encode_json(type_: int, document: Any) -> bytes:
    return encode_frame(type_, msgspec.json.encode(document))


def encode_hello(**fields: Any) -> bytes:
    """The first frame of a connection: its ticket or claims."""
    return encode_json(FrameType.HELLO, fields)


def encode_exit(code: int | None = None, signal: int | None = None) -> bytes:
    """The command's end: its exit code, or the signal that killed it."""
    return encode_json(FrameType.EXIT, {"signal": signal} if signal is not None else {"code": code or 0})


def encode_error(error: WeftError) -> bytes:
    """``error`` as a frame; a message too long for a frame is cut."""
    document = error.to_dict()
    payload = msgspec.json.encode(document)
    if len(payload) > MAX_PAYLOAD_BYTES:
        payload = msgspec.json.encode({"reason": document["reason"], "message": document["message"][:8000]})
    return encode_frame(FrameType.ERROR, payload)


Position = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class ClientSession(msgspec.Struct, frozen=True):
    """Said by a client that can go on with its exec session through another gateway: how far it has come; of a session that begins,
    nothing. Its gateway tells it the session's ``key`` and ``run`` (SESSION), and how much input the command has read (ACK)."""

    key: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{32})?$")] = ""
    run: Annotated[str, msgspec.Meta(max_length=100)] = ""
    stdout: Position = 0  # bytes that it has
    stderr: Position = 0
    first: Position = 0  # of the input that it sends, in the whole
    end: Position = 0  # of the input that it has


class FrameDecoder:
    """Splits a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes; raises InvalidInput for one over 64 KiB."""
        buffer = self._buffer
        buffer += data
        frames, start = [], 0
        while len(buffer) - start >= HEADER.size:
            type_, length = HEADER.unpack_from(buffer, start)
            if length > MAX_PAYLOAD_BYTES:
                raise _too_large(length)
            end = start + HEADER.size + length
            if len(buffer) < end:
                break
            frames.append(Frame(type_, bytes(memoryview(buffer)[start + HEADER.size : end])))
            start = end
        del buffer[:start]
        return frames


async def receive_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame of an asyncio stream, None at its end between frames.

    Raises Unavailable when the stream is cut inside a frame, InvalidInput for a frame over 64 KiB."""
    try:
        type_, length = HEADER.unpack(await reader.readexactly(HEADER.size))
        if length > MAX_PAYLOAD_BYTES:
            raise _too_large(length)
        return Frame(type_, await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        if error.partial or error.expected != HEADER.size:
            raise _cut() from None
        return None


async def drop_rest(reader: asyncio.StreamReader) -> None:
    """Read and discard until the peer has closed or is lost.

    Closing a socket with unread bytes resets the connection, and the frames sent last would be lost on their way."""
    try:
        while await reader.read(MAX_PAYLOAD_BYTES):
            pass
    except OSError:
        pass


def _too_large(length: int) -> WeftError:
    return InvalidInput(f"the frame has {length} bytes; at most {MAX_PAYLOAD_BYTES} are allowed", reason="tooLarge")


def _cut() -> WeftError:
    return Unavailable("the connection was cut in the middle of a frame")
