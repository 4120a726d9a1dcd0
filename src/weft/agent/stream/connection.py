"""One client of one stream, as the agent sees it through the gateway. Reads and writes frames, decides nothing."""

from __future__ import annotations

import asyncio
import contextlib

from weft.objects.errors import Unavailable
from weft.protocol.frames import Frame, FrameType, drop_rest, encode_data, receive_frame


class Stream:
    """One client, as the agent sees it through the gateway. ``close`` ends it for both sides."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @property
    def reader(self) -> asyncio.StreamReader:
        """For what is no frames: invocations, whose messages have a length of their own."""
        return self._reader

    @property
    def writer(self) -> asyncio.StreamWriter:
        return self._writer

    async def receive(self) -> Frame | None:
        """The next frame that isn't a sign of life; None when the client has gone."""
        while True:
            try:
                frame = await receive_frame(self._reader)
            except (OSError, Unavailable):
                return None
            if frame is None or frame.type != FrameType.PING:
                return frame

    async def send(self, frame: bytes) -> None:
        """Send it, waiting while the client is slow. Raises OSError when the client has gone."""
        self._writer.write(frame)
        await self._writer.drain()

    async def send_data(self, type_: int, data: bytes) -> None:
        for frame in encode_data(type_, data):
            await self.send(frame)

    async def drain(self) -> None:
        """Take and drop what still comes until the client has closed."""
        await drop_rest(self._reader)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
