"""A TCP relay between two clusters that cuts, delays and limits what goes through: the link's URL leads to it. One for each
direction of calls; cut only one of them for a link that works one way."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

_PIECE = 64 << 10


class LinkProxy:
    """Listens at ``url`` and leads to ``host``:``port``. ``delay_seconds`` before each piece, each way; ``rate`` in bytes a second,
    None: no limit. Usable from threads."""

    def __init__(self, host: str, port: int, listen_host: str = "127.0.0.1") -> None:
        self._to, self.delay_seconds = (host, port), 0.0
        self.rate: float | None = None
        self.accepted = 0
        self._open, self._frozen, self._is_cut = set[asyncio.StreamWriter](), False, False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, listen_host, 0))
        self.port = int(self._server.sockets[0].getsockname()[1])
        self.url = f"https://{listen_host}:{self.port}"

    def cut(self) -> None:
        """End all connections, and refuse new ones, until ``mend``."""
        self._loop.call_soon_threadsafe(self._cut)

    def freeze(self) -> None:
        """Let nothing through, without a word, until ``mend``: a line that swallows packets."""
        self._frozen = True

    def mend(self) -> None:
        self._is_cut = self._frozen = False

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            self._cut()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _cut(self) -> None:
        self._is_cut = True
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        with self._held(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            if self._is_cut:
                return
            far_reader, far_writer = await asyncio.open_connection(*self._to)
            with self._held(far_writer):
                ways = [asyncio.create_task(self._pump(*way)) for way in ((reader, far_writer), (far_reader, writer))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()

    @contextlib.contextmanager
    def _held(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        self._open.add(writer)
        try:
            yield
        finally:
            self._open.discard(writer)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE):
            await asyncio.sleep(self.delay_seconds)
            while self._frozen:
                await asyncio.sleep(0.02)
            if self.rate is not None:
                await asyncio.sleep(len(piece) / self.rate)
            writer.write(piece)
            await writer.drain()
