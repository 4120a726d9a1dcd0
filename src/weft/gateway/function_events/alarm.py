"""Waits for a wake-up, or until some time has passed."""

from __future__ import annotations

import asyncio

from weft.contracts.clock import Clock


class Alarm:
    """``ring`` ends the present ``wait``, or the next one."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._rung = clock, asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until it rings, ``seconds`` at most."""
        if seconds is not None and not self._rung.is_set():
            ringing = asyncio.ensure_future(self._rung.wait())
            limit = asyncio.ensure_future(self._clock.sleep(max(0.0, seconds)))
            try:
                await asyncio.wait((ringing, limit), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ringing.cancel()
                limit.cancel()
        else:
            await self._rung.wait()
        self._rung.clear()
