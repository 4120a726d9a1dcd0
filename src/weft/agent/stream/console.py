"""A guest's console for one client at a time.

Reads the runtime's console socket and log file; writes the client's input to the socket. Called by the streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from weft.agent.state.allocation import LocalAllocation
from weft.agent.stream.connection import Stream
from weft.agent.stream.guest_location import GuestLocator
from weft.agent.stream.logs import send_gone
from weft.agent.stream.wait import run_until_first_ends
from weft.agent.workload.console_log import PrintedLog
from weft.objects.errors import InUse, Unavailable
from weft.protocol.frames import FrameType, encode_exit, encode_json

RECENT_BYTES = 4096
CHUNK_BYTES = 32 * 1024


class Consoles:
    def __init__(self) -> None:
        self._held: dict[str, str] = {}  # the client by guest id

    @contextmanager
    def hold(self, local: LocalAllocation, subject: str) -> Iterator[None]:
        """Hold the guest's console; raises InUse with the name of its holder."""
        holder = self._held.get(local.id)
        if holder is not None:
            raise InUse(
                f"the console of {local.short_name} is in use by {holder or 'someone else'}",
                hint="weft vm logs -f shows what it prints",
            )
        self._held[local.id] = subject
        try:
            yield
        finally:
            del self._held[local.id]


async def serve_console(
    stream: Stream, socket: str, log: PrintedLog, came_to: int | None, where: GuestLocator, what: str
) -> None:
    """Connect ``stream`` with the guest's console: first its recent output, or that since ``came_to`` (see ``follow_log``), then
    both ways until either ends. Raises Unavailable for a guest that doesn't run."""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError as problem:
        raise Unavailable(f"{what} is not running, so it has no console", hint="start it") from problem
    try:
        resumes = came_to is not None and came_to >= 0
        since = came_to if resumes and came_to is not None else await asyncio.to_thread(log.find_recent, RECENT_BYTES)
        printed = await asyncio.to_thread(log.read, since, max(0, (log.end or 0) - since))
        if came_to is not None:
            await stream.send(encode_json(FrameType.SESSION, {"printed": printed.start}))
        await stream.send_data(FrameType.DATA_OUT, printed.data)
        await run_until_first_ends(_from_guest(stream, reader), _to_guest(stream, writer))
        if reader.at_eof():
            gone = await where.settle()
            if gone is None:
                await stream.send(encode_exit(0))
            else:
                await send_gone(stream, gone, log.end, came_to)
    finally:
        writer.close()


async def _from_guest(stream: Stream, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(CHUNK_BYTES):
        await stream.send_data(FrameType.DATA_OUT, data)


async def _to_guest(stream: Stream, writer: asyncio.StreamWriter) -> None:
    while (frame := await stream.receive()) is not None:
        if frame.type == FrameType.DATA_IN:
            writer.write(frame.payload)
            await writer.drain()
        elif frame.type == FrameType.END_IN:
            return
