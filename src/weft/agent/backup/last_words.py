"""The last lines that a process that works on a repository writes to its standard error, without what is secret."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

MOST_BYTES, MOST_LINES = 4096, 3


class LastWords:
    """Reads ``stream`` to its end, and keeps the end. ``secrets`` are in nothing that it gives back."""

    def __init__(self, stream: asyncio.StreamReader, secrets: Iterable[str]) -> None:
        self._secrets = sorted({one for one in secrets if one}, key=len, reverse=True)
        self._kept = b""
        self._reading = asyncio.ensure_future(self._read(stream))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        # So much more is kept as a secret at the cut may be long: otherwise its second half would not be known as one.
        most = MOST_BYTES + max((len(one.encode()) for one in self._secrets), default=0)
        while data := await stream.read(MOST_BYTES):
            self._kept = (self._kept + data)[-most:]

    async def end(self) -> str:
        """``: `` and the last lines of a process that has ended; "" if it said nothing."""
        with contextlib.suppress(TimeoutError):  # what it started may hold the other end
            async with asyncio.timeout(1.0):
                await asyncio.shield(self._reading)
        text = self._kept.decode(errors="replace")
        for secret in self._secrets:
            text = text.replace(secret, "…")
        lines = [line.strip() for line in text[-MOST_BYTES:].splitlines() if line.strip()]
        return f": {' | '.join(lines[-MOST_LINES:])[-600:]}" if lines else ""

    def stop(self) -> None:
        self._reading.cancel()
