"""The agent's end of one client's stream through the gateway. Reads and writes frames, decides nothing."""

from __future__ import annotations

import asyncio
import contextlib

from weft.agent.stream.wait import run_until_first_ends
from weft.objects.errors import Unavailable
from weft.protocol.frames import Frame, FrameType, drop_rest, encode_data, receive_frame

CHUNK_BYTES = 65536


class Stream:
    """``gateway`` is where the gateway is that carries it. ``close`` ends it for both sides."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gateway: str = "") -> None:
        self._reader, self._writer, self.gateway = reader, writer, gateway

    @property
    def reader(self) -> asyncio.StreamReader:
        """The reader for invocations, whose messages aren't frames."""
        return self._reader

    @property
    def writer(self) -> asyncio.StreamWriter:
        return self._writer

    async def receive(self) -> Frame | None:
        """The next frame except PING; None when the client has gone."""
        while True:
            try:
                frame = await receive_frame(self._reader)
            except (OSError, Unavailable):
                return None
            if frame is None or frame.type != FrameType.PING:
                return frame

    async def send(self, frame: bytes) -> None:
        """Send a frame; waits for a slow client. Raises OSError when the client has gone."""
        self._writer.write(frame)
        await self._writer.drain()

    async def send_data(self, type_: int, data: bytes) -> None:
        for frame in encode_data(type_, data):
            await self.send(frame)

    async def send_output(self, channel: str, data: bytes) -> None:
        await self.send_data(FrameType.DATA_OUT if channel == "stdout" else FrameType.STDERR, data)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay bytes both ways until one end has gone; the client may end its input before."""
        try:
            await run_until_first_ends(self._carry_out(reader), self._carry_in(writer))
        finally:
            writer.close()

    async def _carry_out(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self.send_data(FrameType.DATA_OUT, data)

    async def _carry_in(self, writer: asyncio.StreamWriter) -> None:
        while (frame := await self.receive()) is not None:
            if frame.type == FrameType.DATA_IN:
                writer.write(frame.payload)
                await writer.drain()
            elif frame.type == FrameType.END_IN and writer.can_write_eof():
                writer.write_eof()
        raise EOFError("the client has gone")

    async def drain(self) -> None:
        """Read and discard until the client has closed."""
        await drop_rest(self._reader)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
