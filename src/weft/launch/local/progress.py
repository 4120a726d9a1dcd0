"""Shows steps as they go: one line each, a mark, the name, what came of it, the seconds. Writes to a stream.

On a terminal the running step is animated and replaced by its result; elsewhere there are only finished rows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TextIO

from weft.contracts.clock import Clock

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
CLEAR = "\r\x1b[K"


class Progress:
    def __init__(self, stream: TextIO, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock

    async def show(self, name: str, work: Awaitable[str]) -> None:
        """Await ``work`` and show its result, a short sentence; whatever it raises passes through."""
        began = self._clock.elapsed()
        drawing = asyncio.ensure_future(self._animate(name, began)) if self._stream.isatty() else None
        try:
            detail = await work
        except BaseException:
            await self._finish(drawing, f"✗ {name}\n")
            raise
        await self._finish(drawing, f"✓ {name:<11} {detail:<84} {self._clock.elapsed() - began:4.1f} s\n")

    async def _animate(self, name: str, began: float) -> None:
        for count in range(1 << 30):
            seconds = self._clock.elapsed() - began
            self._write(f"{CLEAR}{FRAMES[count % len(FRAMES)]} {name:<11} {seconds:4.1f} s")
            await self._clock.sleep(0.1)

    async def _finish(self, drawing: asyncio.Future[None] | None, row: str) -> None:
        if drawing is not None:
            drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drawing
            row = CLEAR + row
        self._write(row)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
