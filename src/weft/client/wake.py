"""A wake-up call: by somebody, or at the latest after some time."""

from __future__ import annotations

import asyncio

from weft.contracts.clock import Clock


class Wake:
    """``ring`` is remembered until the next ``wait`` returns."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, seconds: float | None = None) -> None:
        """Return when rung, or after ``seconds`` (None: only when rung)."""
        if seconds is None or self._rung.is_set():
            await self._rung.wait()
        elif seconds > 0:
            tasks = [asyncio.ensure_future(self._rung.wait()), asyncio.ensure_future(self._clock.sleep(seconds))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
        self._rung.clear()
