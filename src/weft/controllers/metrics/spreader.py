"""Sends the samples of each moment to the other servers, whose histories are the same as this one's.

Nothing is kept for a server that doesn't take them: it finds out what it lacks, and gets that itself
(``api/servers/history_copies``)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

from weft.client.server.others import OtherServers
from weft.objects.errors import Unavailable
from weft.telemetry.metrics.sample import HEADERS
from weft.telemetry.metrics.sender import SampleBatch

MOST_WAITING = 2  # moments; of more, the oldest are left out
_MOST_SECONDS = 10.0  # that a server may take for the samples of one moment
_PATH = "/v1/history/samples"
_log = logging.getLogger(__name__)


class Spreader:
    def __init__(self, others: OtherServers) -> None:
        self._others = others
        self._waiting: deque[Sequence[SampleBatch]] = deque(maxlen=MOST_WAITING)
        self._woken = asyncio.Event()
        self.is_busy = False

    def put(self, batches: Sequence[SampleBatch]) -> None:
        """Send these, of one moment; never waits."""
        if self._others.list_serving():
            self._waiting.append(batches)
            self.is_busy = True
            self._woken.set()

    async def run(self) -> None:
        """Send for ever."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                bodies = [await batch.encode() for batch in self._waiting.popleft()]
                await asyncio.gather(*(self._send(name, bodies) for name in self._others.list_serving()))
            self.is_busy = False

    async def _send(self, name: str, bodies: Sequence[bytes]) -> None:
        """Send all, in order, or no more: the last has the sample that says that the others are there."""
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                for body in bodies:
                    answer = await self._others.ask(name, "PUT", _PATH, body, headers=HEADERS)
                    if answer.status != 204:
                        _log.debug("server %s takes no samples: it answers %d", name, answer.status)
                        return
        except (Unavailable, TimeoutError):
            return
