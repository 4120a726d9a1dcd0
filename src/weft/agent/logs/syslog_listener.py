"""Takes syslog from the guests of one network, by datagrams and by streams. What comes faster than it may waits in a stream; of
datagrams it is dropped, and counted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable

from weft.agent.logs.inbox import Inbox
from weft.agent.logs.syslog_message import MOST_BYTES, Framer, Unframed, read_message
from weft.agent.state.allocation import LocalAllocation
from weft.contracts.clock import Clock

DATAGRAMS, REST_SECONDS = 100, 0.02  # so many are read at once, or a piece of a stream, and then again after a rest
RECEIVE_BYTES = 1 << 20
MOST_CONNECTIONS, MOST_OF_GUEST = 256, 8
IDLE_SECONDS = 600.0
WAIT_SECONDS = 0.1  # a stream that comes faster than it may
PIECE_BYTES = 64 << 10
Find = Callable[[str], LocalAllocation | None]  # the guest with an address


class SyslogListener:
    def __init__(self, datagrams: socket.socket, stream: socket.socket, find: Find, inbox: Inbox, clock: Clock) -> None:
        self._datagrams, self._stream = datagrams, stream
        self._find, self._inbox, self._clock = find, inbox, clock
        self._server: asyncio.Server | None = None
        self._connections: Counter[str] = Counter()  # by address
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def begin(self) -> None:
        """Raises OSError."""
        self._datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self._server = await asyncio.start_server(self._serve, sock=self._stream, limit=PIECE_BYTES)
        self._listen()

    async def close(self) -> None:
        self._closed = True
        asyncio.get_running_loop().remove_reader(self._datagrams)
        self._datagrams.close()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _listen(self) -> None:
        if not self._closed:
            asyncio.get_running_loop().add_reader(self._datagrams, self._read_datagrams)

    def _read_datagrams(self) -> None:
        """Some at once: a flood must keep the agent from nothing else, and the kernel drops the rest of it cheaply."""
        for _ in range(DATAGRAMS):
            try:
                message, (address, _port) = self._datagrams.recvfrom(MOST_BYTES)
            except OSError:
                return
            local = self._find(address)
            if local is not None and message.strip(b" \t\r\n\0"):
                self._inbox.put(local.spec.workload.uid, local.what, read_message(message))
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._datagrams)
        loop.call_later(REST_SECONDS, self._listen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("peername")[0]
        task = asyncio.current_task()
        assert task is not None
        if (
            self._find(address) is None
            or self._connections[address] >= MOST_OF_GUEST
            or self._connections.total() >= MOST_CONNECTIONS
        ):
            writer.close()
            return
        self._tasks.add(task)
        self._connections[address] += 1
        try:
            await self._read_stream(reader, address)
        except (OSError, TimeoutError, Unframed):
            pass
        finally:
            self._tasks.discard(task)
            self._connections[address] -= 1
            self._connections += Counter()  # without those at zero
            with contextlib.suppress(OSError):
                writer.close()

    async def _read_stream(self, reader: asyncio.StreamReader, address: str) -> None:
        """Raises OSError, TimeoutError, Unframed."""
        framer = Framer()
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                data = await reader.read(PIECE_BYTES)
            messages = framer.feed(data) if data else framer.end()
            for message in messages:
                local = self._find(address)
                if local is None:
                    return
                uid = local.spec.workload.uid
                while not self._inbox.can_take(uid):
                    await self._clock.sleep(WAIT_SECONDS)
                self._inbox.put(uid, local.what, read_message(message))
            if not data:
                return
            await self._clock.sleep(
                REST_SECONDS
            )  # what is left out of a stream counts for no rate, and is read all the same
