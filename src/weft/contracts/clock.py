"""Time, as a value that is passed in: nothing outside the clock asks the system for it, so tests run in virtual time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Unix seconds. For stamps on the server only: never compare it across machines."""

    def elapsed(self) -> float:
        """Seconds on a clock that never jumps (monotonic)."""

    async def sleep(self, seconds: float) -> None: ...


def read_boot_time() -> float:
    """Seconds since this machine started, with those in which it slept: leases that end guests count by it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SystemClock:
    def now(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        import asyncio  # noqa: PLC0415 - a command of a person has no loop and starts a sixth faster without asyncio

        await asyncio.sleep(seconds)
