"""Starts the process that does the arithmetic of profiles (``arithmetic.py``), for the controllers, and asks it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process

from weft.launch.insight.framing import LENGTH, MOST_BYTES
from weft.objects.errors import Unavailable

MOST_SECONDS = 300.0  # of one batch, on a busy machine
# Threads of a linear-algebra library would each take memory and a core.
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class InsightWorker:
    """The process that analyses, started when there is work and ended at ``rest``."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._killed: list[Process] = []

    async def analyse(self, batch: bytes) -> bytes:
        """Run ``analysis.analyse`` in the process. Raises Unavailable where the process ends or takes too long."""
        process = await self._find()
        assert process.stdin is not None and process.stdout is not None
        try:
            async with asyncio.timeout(MOST_SECONDS):
                process.stdin.write(LENGTH.pack(len(batch)) + batch)
                await process.stdin.drain()
                (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
                return await process.stdout.readexactly(min(length, MOST_BYTES))
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            await self.rest()
            raise Unavailable("the process that computes profiles ended early or took too long") from None
        except asyncio.CancelledError:
            self._kill()
            raise

    async def rest(self) -> None:
        """End it: its memory is the machine's again. If this is cancelled, call it again."""
        self._kill()
        while self._killed:
            await self._killed[-1].communicate()  # also closes its pipes
            self._killed.pop()

    async def _find(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            argv = (sys.executable, "-m", "weft.launch.insight.arithmetic")
            environ = {**os.environ, **_ONE_THREAD}
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environ
            )
        return self._process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._killed.append(process)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
