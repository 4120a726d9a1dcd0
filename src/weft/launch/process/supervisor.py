"""Keeps a process alive: starts it again whenever it ends."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from weft.contracts.clock import Clock

PR_SET_PDEATHSIG = 1
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 5.0
HEALTHY_AFTER_SECONDS = 10.0


class Supervisor:
    """Starts one command again whenever it ends, waiting longer after each quick death. ``name`` is for the log."""

    def __init__(self, name: str, argv: Sequence[str], clock: Clock) -> None:
        self._name = name
        self._argv = argv
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None

    async def keep(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            began = self._clock.elapsed()
            self._process = await asyncio.create_subprocess_exec(*self._argv, preexec_fn=_die_with_parent)
            code = await self._process.wait()
            if self._clock.elapsed() - began > HEALTHY_AFTER_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            print(
                f"weft server: {self._name} exited with {code}; restarting in {backoff:g} s",
                file=sys.stderr,
                flush=True,
            )
            await self._clock.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    async def end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def supervising(supervisors: Sequence[Supervisor]) -> AsyncIterator[None]:
    """Keep them all; at the end the last one ends first."""
    tasks = [asyncio.create_task(supervisor.keep()) for supervisor in supervisors]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for supervisor in reversed(supervisors):
            await supervisor.end()


def _die_with_parent() -> None:
    """In the child: ask the kernel for a signal when the supervisor ends, however it ends (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
