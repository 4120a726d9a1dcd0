"""A guest stands still for a snapshot of several guests, until it is released or its time is up."""

from __future__ import annotations

import asyncio


class Hold:
    def __init__(self) -> None:
        self.since = 0.0  # elapsed seconds
        self._timer: asyncio.Task[None] | None = None

    def begin(self, timer: asyncio.Task[None]) -> None:
        """``timer`` is what lets the guest run on if nobody releases it."""
        self._timer = timer

    @property
    def is_on(self) -> bool:
        return self._timer is not None and not self._timer.done()

    def end(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()
