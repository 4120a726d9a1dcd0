"""Containers in which a kernel has killed a process for lack of memory, as their shims report it to containerd: the only report
where that kernel isn't the node's. Reports that come while nobody listens are lost."""

from __future__ import annotations

import asyncio

from weft.contracts.clock import Clock
from weft.drivers.runtime.oci.containerd.client import NAMESPACE, Client
from weft.drivers.runtime.oci.containerd.messages import messages
from weft.objects.errors import WeftError

AGAIN_SECONDS = 0.5
_FILTER = f'topic=="/tasks/oom",namespace=={NAMESPACE}'


class Shortages:
    """Listens from ``listen`` on."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._told: dict[str, asyncio.Event] = {}
        self._listening: asyncio.Task[None] | None = None

    def listen(self) -> None:
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._follow())

    async def is_reported(self, container_id: str, within_seconds: float) -> bool:
        """Whether a report of it has come, or comes within that time."""
        event = self._told.setdefault(container_id, asyncio.Event())
        try:
            async with asyncio.timeout(within_seconds):
                await event.wait()
        except TimeoutError:
            return event.is_set()
        return True

    def forget(self, container_id: str) -> None:
        self._told.pop(container_id, None)

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            try:
                async for envelope in self._client.listen("events.v1.Events/Subscribe", filters=[_FILTER]):
                    container_id = messages["TaskOom"].FromString(envelope.event.value).container_id
                    self._told.setdefault(container_id, asyncio.Event()).set()
            except WeftError:
                pass  # it may be started again at any time
            await self._clock.sleep(AGAIN_SECONDS)
