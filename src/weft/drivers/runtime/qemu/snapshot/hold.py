"""A guest stands still for a snapshot of several guests, until it is released or its time is up: also if this process is killed."""

from __future__ import annotations

import asyncio
import contextlib
import sys

from weft.drivers.runtime.qemu.snapshot import let_run_on


class Hold:
    def __init__(self) -> None:
        self.since = 0.0  # elapsed seconds
        self._timer: asyncio.Task[None] | None = None
        self._guard: asyncio.subprocess.Process | None = None

    async def guard(self, *sockets: str) -> None:
        """Have the guest with this monitor, and this agent's socket, run on if this process ends before ``end``. Raises OSError."""
        words = [sys.executable, "-ISB", let_run_on.__file__, *sockets]
        none = asyncio.subprocess.DEVNULL
        self._guard = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.PIPE, stdout=none, stderr=none, cwd="/", start_new_session=True
        )

    def begin(self, timer: asyncio.Task[None]) -> None:
        """``timer`` is what lets the guest run on if nobody releases it."""
        self._timer = timer

    @property
    def is_on(self) -> bool:
        return self._timer is not None and not self._timer.done()

    def end(self) -> None:
        """The guest runs on, or is about to for another reason."""
        timer, self._timer = self._timer, None
        if timer is not None and timer is not asyncio.current_task():
            timer.cancel()
        guard, self._guard = self._guard, None
        if guard is not None and guard.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):  # it has ended
                guard.stdin.write(b".")
                guard.stdin.close()
