"""A command in a container's machine that its caller can end, whatever signals it ignores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from weft.contracts.driver.runtime import CanResize, ExecChunk, ExecSession


class KillableSession:
    """An ExecSession with CanResize and CanKill; ``start_kill`` starts the command that ends ``session``'s."""

    def __init__(self, session: ExecSession, start_kill: Callable[[], Awaitable[ExecSession]]) -> None:
        self._session, self._start_kill = session, start_kill
        self._ended = asyncio.Event()

    async def write(self, data: bytes) -> None:
        await self._session.write(data)

    async def close_stdin(self) -> None:
        await self._session.close_stdin()

    async def resize(self, rows: int, columns: int) -> None:
        if isinstance(self._session, CanResize):
            await self._session.resize(rows, columns)

    async def output(self) -> AsyncIterator[ExecChunk]:
        async for chunk in self._session.output():
            if chunk.channel == "exit":
                self._ended.set()
            yield chunk

    async def kill(self) -> None:
        if self._ended.is_set():
            return
        killing = await self._start_kill()
        await killing.close_stdin()
        async for _ in killing.output():
            pass

    async def close(self) -> None:
        await self._session.close()
