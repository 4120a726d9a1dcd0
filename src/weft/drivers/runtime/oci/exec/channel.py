"""One descriptor of a pipe or terminal for asyncio: waits instead of blocking, keeps nothing back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os

READ_BYTES = 64 << 10


class Channel:
    """Owns the descriptor. One reader and one writer at a time."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor: int | None = descriptor
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def descriptor(self) -> int | None:
        return self._descriptor

    async def read(self) -> bytes:
        """Read what is there, waiting for something; empty at the end."""
        while self._descriptor is not None:
            try:
                return os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                await self._ready(reading=True)
            except OSError as error:
                if error.errno == errno.EIO:  # a terminal that nobody has open any more
                    return b""
                raise
        return b""

    async def write(self, data: bytes) -> None:
        """Write all of it. Without a reader, or on a closed channel, it is lost."""
        while data and self._descriptor is not None:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                await self._ready(reading=False)
            except (BrokenPipeError, OSError):
                return

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(descriptor)
        loop.remove_writer(descriptor)
        os.close(descriptor)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def _ready(self, *, reading: bool) -> None:
        loop, descriptor = asyncio.get_running_loop(), self._descriptor
        assert descriptor is not None
        ready: asyncio.Future[None] = loop.create_future()
        add, remove = (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)
        add(descriptor, _settle, ready)
        self._waiting.add(ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if self._descriptor is not None:
                with contextlib.suppress(ValueError, OSError):
                    remove(descriptor)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
