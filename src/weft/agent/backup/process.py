"""Processes that do the work of one order: the job goes in over standard input, lines about how it goes come out."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterable
from typing import TypeVar

import msgspec

from weft.agent.backup.last_words import LastWords
from weft.objects.errors import DriverFailed

L = TypeVar("L")
_LINE_BYTES = 1 << 20


async def read_lines(
    module: str, job: msgspec.Struct, line: type[L], secrets: Iterable[str] = ()
) -> AsyncGenerator[L, None]:
    """Lines of a process that runs ``module`` and is killed at the end. Raises DriverFailed with its last words, without
    ``secrets``, if it dies before."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL"),  # it goes with the agent, however that ends
        *(sys.executable, "-m", module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    words = LastWords(process.stderr, secrets)
    try:
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
        async for text in process.stdout:
            yield msgspec.json.decode(text, type=line)
        await process.wait()
        said = await words.end()
    finally:
        words.stop()
        if process.returncode is None:
            process.kill()
        await process.wait()
    raise DriverFailed(
        f"the process that worked on it ended with {process.returncode}{said}",
        reason="workerDied",
        hint="it may be tried again",
    )
