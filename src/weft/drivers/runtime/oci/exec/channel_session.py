"""Base of all commands beside a container's own process: bytes go in by one channel, come out by others, and then there is an exit
code."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from weft.contracts.driver.runtime import ExecChunk
from weft.drivers.runtime.oci.exec.channel import Channel

LINGER_SECONDS = 0.5  # for output of what the command left behind
NOT_STARTED = 126  # the exit code of a command that couldn't be started, as shells have it
QUEUE_CHUNKS = 8
_END_OF_INPUT = b"\x04"  # as a person at a terminal says it


class ChannelSession(ABC):
    """The part of an ExecSession that is the same for all commands; ``wait`` returns when it has ended. A terminal's output
    comes by its ``stdout``."""

    linger_seconds = LINGER_SECONDS

    def __init__(self, stdin: Channel, outputs: dict[str, Channel], *, terminal: bool) -> None:
        self._stdin, self._outputs, self._terminal = stdin, outputs, terminal
        self._chunks: asyncio.Queue[ExecChunk] = asyncio.Queue(QUEUE_CHUNKS)
        self._reading: set[str] = set()
        self._leading = asyncio.create_task(self._lead())

    @abstractmethod
    async def wait(self) -> int:
        """The exit code of the program that runs it, once that has ended."""

    def read_exit(self, code: int) -> int:
        """The command's own exit code, from that of the program that runs it; all its output has been read."""
        return code

    def on_output(self, data: bytes) -> bytes:
        """The part of its output, or of its starter's, that is passed on."""
        return data

    async def write(self, data: bytes) -> None:
        await self._stdin.write(data)

    async def close_stdin(self) -> None:
        if self._terminal:
            await self._stdin.write(_END_OF_INPUT)
        else:
            self._stdin.close()

    async def output(self) -> AsyncIterator[ExecChunk]:
        while True:
            chunk = await self._chunks.get()
            yield chunk
            if chunk.channel == "exit":
                return

    async def let_go(self) -> None:
        """Nobody reads it any more."""
        self._leading.cancel()
        await asyncio.gather(self._leading, return_exceptions=True)
        self._release()

    async def _lead(self) -> None:
        pumps = [asyncio.create_task(self._pump(name, channel)) for name, channel in self._outputs.items()]
        try:
            code = await self.wait()
            await self._settle(pumps)
            await self._chunks.put(ExecChunk("exit", code=self.read_exit(code)))
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._release()

    async def _pump(self, name: str, channel: Channel) -> None:
        while True:
            self._reading.add(name)
            data = await channel.read()
            self._reading.discard(name)
            if not data:
                return
            await self._chunks.put(ExecChunk("stderr" if name == "stderr" else "stdout", self.on_output(data)))

    async def _settle(self, pumps: list[asyncio.Task[None]]) -> None:
        """Pass on all that the command printed, however slowly it is read; what it left running may print on, but nobody waits
        for that."""
        waiting = set(pumps)
        while waiting:
            _, waiting = await asyncio.wait(waiting, timeout=self.linger_seconds)
            if self._reading:
                return

    def _release(self) -> None:
        for channel in (self._stdin, *self._outputs.values()):
            channel.close()
