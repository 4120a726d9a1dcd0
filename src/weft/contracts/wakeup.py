"""A wake-up call: by somebody, or at the latest after some time."""

from __future__ import annotations

import asyncio
import contextlib

from weft.contracts.clock import Clock, SystemClock


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
            await wait_for_event(self._clock, self._rung, seconds)
        self._rung.clear()


async def wait_for_event(clock: Clock, event: asyncio.Event, seconds: float | None) -> bool:
    """Whether ``event`` was set within ``seconds`` (None: wait for ever)."""
    if seconds is None or event.is_set():
        await event.wait()
        return True
    if isinstance(clock, SystemClock):
        # The loop's own time: a timer costs a third of two tasks, and each guest and each controller waits so.
        if seconds <= 0:
            await clock.sleep(0.0)
            return event.is_set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await event.wait()
        return event.is_set()
    waiting = asyncio.ensure_future(event.wait())
    limit = asyncio.ensure_future(clock.sleep(max(0.0, seconds)))
    try:
        await asyncio.wait((waiting, limit), return_when=asyncio.FIRST_COMPLETED)
        return event.is_set()
    finally:
        waiting.cancel()
        limit.cancel()
