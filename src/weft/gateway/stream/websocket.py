"""The same streams for browsers: a connection that begins with an HTTP request is a web socket (RFC 6455).

``wss://GATEWAY/v1/stream?ticket=…`` stands for the client's hello. A message to us is DATA_IN, a message from us DATA_OUT
(or STDERR); the stream's end is the web socket's, with the error's words as its reason. Reads and writes frames like any
connection; decides nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from urllib.parse import parse_qs, urlsplit

from weft.gateway.stream.connection import StreamConnection
from weft.gateway.stream.origins import Origins
from weft.objects.errors import Forbidden, InvalidInput, WeftError
from weft.protocol.frames import HEADER, MAX_PAYLOAD_BYTES, Frame, FrameDecoder, FrameType, encode_json

PATH = "/v1/stream"
_BEGINNING = b"GET /"  # as a frame it would have a gigabyte, which no client sends
_MOST_HEADER_BYTES = 16384
_MOST_FIELDS = 16
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_NORMAL, _FAILED = 1000, 1011
_REASON_BYTES = 123


async def receive_hello(connection: StreamConnection, origins: Origins) -> tuple[StreamConnection, Frame] | None:
    """The connection, perhaps as a web socket, and its hello; None when it has closed. Raises InvalidInput."""
    try:
        beginning = await connection.reader.readexactly(HEADER.size)
        if beginning != _BEGINNING:
            type_, length = HEADER.unpack(beginning)
            if length > MAX_PAYLOAD_BYTES:
                raise InvalidInput(f"a frame of {length} bytes: at most {MAX_PAYLOAD_BYTES}", reason="tooLarge")
            return connection, Frame(type_, await connection.reader.readexactly(length))
        request = beginning + await connection.reader.readuntil(b"\r\n\r\n")
    except (EOFError, OSError, asyncio.LimitOverrunError):  # LimitOverrun: no end of the headers in sight
        return None
    return await _upgrade(connection, request, origins)


async def _upgrade(
    connection: StreamConnection, request: bytes, origins: Origins
) -> tuple[StreamConnection, Frame] | None:
    first, *lines = request.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    try:
        url = urlsplit(first.split(" ")[1])
        ticket = parse_qs(url.query, max_num_fields=_MOST_FIELDS).get("ticket", [""])[0]
    except ValueError:
        await _refuse(connection, "400 Bad Request", "that is not a URL")
        return None
    key = headers.get("sec-websocket-key", "")
    if len(request) > _MOST_HEADER_BYTES or headers.get("upgrade", "").lower() != "websocket" or not key:
        await _refuse(connection, "426 Upgrade Required", "this is weft's gateway: use a web socket")
        return None
    if url.path != PATH or not ticket:
        await _refuse(connection, "404 Not Found", f"use {PATH}?ticket=…, with a ticket from the API")
        return None
    try:
        origins.check(headers.get("origin"), headers.get("host", ""))
    except Forbidden as problem:
        await _refuse(connection, "403 Forbidden", f"{problem.message}: {problem.hint}")
        return None
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    offered = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
    protocol = "Sec-WebSocket-Protocol: binary\r\n" if "binary" in offered else ""
    connection.writer.write(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n".encode()
    )
    hello = encode_json(FrameType.HELLO, {"role": "client", "ticket": ticket})
    return WebSocket(connection), Frame(FrameType.HELLO, hello[HEADER.size :])


async def _refuse(connection: StreamConnection, status: str, words: str) -> None:
    body = f"{words}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    await connection.send(f"{head}Upgrade: websocket\r\nConnection: close\r\n\r\n".encode() + body)


class WebSocket(StreamConnection):
    """A client's web socket, as frames."""

    def __init__(self, connection: StreamConnection) -> None:
        super().__init__(connection.reader, connection.writer)
        self._left, self._opcode, self._mask = 0, 0, b""  # of the frame that is being read
        self._decoder = FrameDecoder()
        self._is_closed = (
            False  # by us: browsers take a second close for a broken connection, and lose the words of the first
        )

    async def receive(self) -> Frame | None:
        try:
            while self._left or await self._read_head():
                piece = await self.reader.readexactly(min(self._left, MAX_PAYLOAD_BYTES))
                self._left -= len(piece)
                if self._opcode <= _BINARY:  # 0 goes on with the message before
                    return Frame(FrameType.DATA_IN, _unmask(piece, self._mask))
                if self._opcode == _PING:
                    await super().send(_pack(_PONG, _unmask(piece, self._mask)))
        except (EOFError, OSError):
            pass
        return None

    async def send(self, frame: bytes) -> bool:
        for sent in self._decoder.feed(frame):
            if sent.type in (FrameType.DATA_OUT, FrameType.STDERR):
                message = _pack(_BINARY, sent.payload)
            elif sent.type == FrameType.EXIT:
                message = _pack_close(_NORMAL, "")
            elif sent.type == FrameType.ERROR:
                message = _pack_close(_FAILED, _describe(sent.error()))
            else:
                continue
            self._is_closed |= sent.type in (FrameType.EXIT, FrameType.ERROR)
            if not await super().send(message):
                return False
        return True

    async def _read_head(self) -> bool:
        """Read the head of the next frame with content; False at the web socket's end. Raises EOFError, OSError."""
        while True:
            first, second = await self.reader.readexactly(2)
            opcode, length = first & 0x0F, second & 0x7F
            if length >= 126:
                length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8), "big")
            mask = await self.reader.readexactly(4) if second & 0x80 else b""
            if opcode == _CLOSE or not mask or (opcode >= _CLOSE and length > 125):  # a client must mask what it sends
                if not self._is_closed:
                    self._is_closed = True
                    await super().send(_pack_close(_NORMAL, ""))
                return False
            if length:
                self._left, self._opcode, self._mask = length, opcode, mask
                return True


def _unmask(data: bytes, mask: bytes) -> bytes:
    """``data`` begins at the mask's start: pieces are cut at multiples of four."""
    whole = mask * (len(data) // 4 + 1)
    return (int.from_bytes(data, "big") ^ int.from_bytes(whole[: len(data)], "big")).to_bytes(len(data), "big")


def _pack(opcode: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        head = bytes([0x80 | opcode, length])
    elif length < 65536:
        head = bytes([0x80 | opcode, 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 127]) + length.to_bytes(8, "big")
    return head + payload


def _pack_close(code: int, words: str) -> bytes:
    return _pack(_CLOSE, code.to_bytes(2, "big") + words.encode()[:_REASON_BYTES].decode(errors="ignore").encode())


def _describe(error: WeftError) -> str:
    return f"{error.token}: {error.message}"
