"""A guest's serial line for one person at a time, and the record of what it printed.

Reads the runtime's console socket and log file; writes what the person types to the socket. Called by the streams.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from weft.agent.known import Wanted
from weft.agent.stream import Stream
from weft.agent.waiting import run_until_first_ends
from weft.client.frames import FrameType, encode_exit
from weft.contracts.clock import Clock
from weft.objects.errors import InUse, Unavailable

RECENT_BYTES = 4096
CHUNK_BYTES = 32 * 1024
LOOK_SECONDS = 0.2


class Consoles:
    """Who is at which guest's console."""

    def __init__(self) -> None:
        self._held: dict[str, str] = {}

    @contextmanager
    def hold(self, wanted: Wanted, subject: str) -> Iterator[None]:
        """Be the one at the guest's console; raises InUse naming who is."""
        holder = self._held.get(wanted.id)
        if holder is not None:
            raise InUse(
                f"the console of {wanted.what} is in use by {holder or 'someone else'}",
                hint="weft vm logs -f shows what it prints meanwhile",
            )
        self._held[wanted.id] = subject
        try:
            yield
        finally:
            del self._held[wanted.id]

    async def serve(self, stream: Stream, socket: str, record: str, wanted: Wanted) -> None:
        """Connect ``stream`` with the guest's line: first what it printed lately, then both ways until either ends."""
        try:
            reader, writer = await asyncio.open_unix_connection(socket)
        except OSError as problem:
            raise Unavailable(
                f"the console of {wanted.what} isn't there: it does not run", hint="start it"
            ) from problem
        try:
            await stream.send_data(FrameType.DATA_OUT, await asyncio.to_thread(_read_tail, record, RECENT_BYTES))
            await run_until_first_ends(_from_guest(stream, reader), _to_guest(stream, writer))
        finally:
            writer.close()


async def _from_guest(stream: Stream, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(CHUNK_BYTES):
        await stream.send_data(FrameType.DATA_OUT, data)
    await stream.send(encode_exit(0))


async def _to_guest(stream: Stream, writer: asyncio.StreamWriter) -> None:
    while (frame := await stream.receive()) is not None:
        if frame.type == FrameType.DATA_IN:
            writer.write(frame.payload)
            await writer.drain()
        elif frame.type == FrameType.END_IN:
            return


async def follow_log(stream: Stream, path: str, tail: int, follow: bool, clock: Clock) -> None:
    """Send the last ``tail`` lines of the file (-1: all of it), then, if ``follow``, what is added until the client
    goes. A file that isn't there yet is empty; one that became shorter was begun anew."""
    watching = asyncio.ensure_future(_until_gone(stream))
    try:
        position = await asyncio.to_thread(_find_tail, path, tail)
        while True:
            data, position = await asyncio.to_thread(_read_from, path, position)
            if data:
                await stream.send_data(FrameType.DATA_OUT, data)
            elif not follow:
                await stream.send(encode_exit(0))
                return
            elif watching.done():
                return
            else:
                await clock.sleep(LOOK_SECONDS)
    finally:
        watching.cancel()


async def _until_gone(stream: Stream) -> None:
    while await stream.receive() is not None:
        pass


def _find_tail(path: str, lines: int) -> int:
    """Where the last ``lines`` lines begin."""
    if lines < 0:
        return 0
    try:
        with open(path, "rb") as file:
            return _find_line(file, lines)
    except FileNotFoundError:
        return 0


def _find_line(file: BinaryIO, lines: int) -> int:
    end = position = file.seek(0, os.SEEK_END)
    if lines == 0:
        return end
    missing = lines
    while position > 0:
        start = max(0, position - CHUNK_BYTES)
        file.seek(start)
        block = file.read(position - start)
        at = len(block)
        if position == end and block.endswith(b"\n"):
            at -= 1  # the last line's own end
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            missing -= 1
            if missing == 0:
                return start + at + 1
        position = start
    return 0


def _read_from(path: str, position: int) -> tuple[bytes, int]:
    try:
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) < position:
                position = 0
            file.seek(position)
            data = file.read(CHUNK_BYTES)
            return data, position + len(data)
    except FileNotFoundError:
        return b"", 0


def _read_tail(path: str, size: int) -> bytes:
    """At most the last ``size`` bytes, from the beginning of a line."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            data = file.read(size)
    except FileNotFoundError:
        return b""
    return data if end <= size else data.partition(b"\n")[2]
