"""Fetches the files of models in a task of its own: nothing else waits for them. Tries again after pauses that grow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from weft.client.api import Client
from weft.contracts.clock import Clock
from weft.edge.server.files import ModelFiles, describe_failure
from weft.objects.errors import WeftError

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 300.0


class FileFetcher:
    """``on_change`` is awaited after each file that came, or couldn't; ``list_used`` gives the paths that are read besides."""

    def __init__(
        self,
        files: ModelFiles,
        client: Client,
        clock: Clock,
        on_change: Callable[[], Awaitable[None]],
        list_used: Callable[[], Iterable[str]],
    ) -> None:
        self._files, self._client, self._clock = files, client, clock
        self._on_change, self._list_used = on_change, list_used
        self._wanted: frozenset[str] = frozenset()
        self._tries: dict[str, tuple[int, float]] = {}  # by digest: how often it failed, and when it is due again
        self._asked = asyncio.Event()
        self.problems: dict[str, str] = {}  # why files can't be fetched, by digest

    def want(self, digests: Iterable[str]) -> None:
        """These files are needed here; all others may go."""
        self._wanted = frozenset(digests)
        self._asked.set()

    async def keep(self) -> None:
        """Run until this is cancelled."""
        while True:
            self._asked.clear()
            await self._fetch_due()
            await self._forget()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._find_pause()):
                    await self._asked.wait()

    def _find_pause(self) -> float | None:
        due = [at for _, at in self._tries.values()]
        return max(0.0, min(due) - self._clock.elapsed()) if due else None

    async def _fetch_due(self) -> None:
        for sha256 in sorted(self._wanted):
            if sha256 not in self._wanted or self._tries.get(sha256, (0, 0.0))[1] > self._clock.elapsed():
                continue
            if await asyncio.to_thread(self._files.find, sha256):
                self._settle(sha256)
                continue
            try:
                await asyncio.to_thread(self._files.fetch, self._client, sha256)
                self._settle(sha256)
            except WeftError as problem:
                tries = self._tries.get(sha256, (0, 0.0))[0]
                pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries, 10))
                self._tries[sha256] = tries + 1, self._clock.elapsed() + pause
                self.problems[sha256] = describe_failure(problem)
            await self._on_change()

    def _settle(self, sha256: str) -> None:
        self._tries.pop(sha256, None)
        self.problems.pop(sha256, None)

    async def _forget(self) -> None:
        """Remove what nobody needs."""
        self._tries = {sha256: one for sha256, one in self._tries.items() if sha256 in self._wanted}
        self.problems = {sha256: why for sha256, why in self.problems.items() if sha256 in self._wanted}
        await asyncio.to_thread(self._files.forget, self._list_used(), self._wanted)
