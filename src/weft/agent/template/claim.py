"""The memory that a machine takes while it boots to become a template: claimed before it starts, so that the scheduler and
functions leave it free, and given up if allocations need it after all. Reads and writes the allocation table.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from weft.agent.state.table import AllocationTable
from weft.contracts.clock import Clock
from weft.objects.errors import DriverFailed
from weft.objects.quantity import format_bytes

LOOK_SECONDS = 1.0
_HEAR_SECONDS = 20.0


class BootMemory:
    """``announce`` returns once the server has this node's facts as they are now, or newer; ``changed``: they differ now."""

    def __init__(
        self,
        capacity_bytes: int,
        table: AllocationTable,
        clock: Clock,
        announce: Callable[[], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        self._capacity, self._table, self._clock = capacity_bytes, table, clock
        self._announce, self._changed = announce, changed

    @property
    def free_bytes(self) -> int:
        """The bytes that neither allocations nor a claim take; less than 0 where too much was given away."""
        return self._capacity - self._table.count_requested()[1]

    async def run(self, size: int, is_lent: Callable[[], bool], boot: Callable[[], Awaitable[None]]) -> None:
        """Carry out ``boot``, which takes ``size`` bytes, while they are free, or while a VM that waits for it lends its own.
        Raises DriverFailed (``noMemory``) where they aren't, and what ``boot`` raises."""
        work = asyncio.ensure_future(self._boot(size, is_lent, boot))
        try:
            while not work.done():
                self._put(0 if is_lent() else size)
                if self.free_bytes < 0 and not is_lent():
                    raise DriverFailed(
                        f"{format_bytes(size)} of memory to boot the image aren't free: VMs and containers have it",
                        reason="noMemory",
                        hint="stop or migrate some of them; the node tries again",
                        details={"step": "template"},
                    )
                await self._wait(work)
            await work
        finally:
            await _end(work)
            self._put(0)

    async def _wait(self, work: asyncio.Future[None]) -> None:
        pause = asyncio.ensure_future(self._clock.sleep(LOOK_SECONDS))
        try:
            await asyncio.wait({work, pause}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(pause)

    async def _boot(self, size: int, is_lent: Callable[[], bool], boot: Callable[[], Awaitable[None]]) -> None:
        if not is_lent():  # what the scheduler gave away before it heard of this arrives by then, or soon
            try:
                async with asyncio.timeout(_HEAR_SECONDS):
                    await self._announce()
            except TimeoutError:
                raise DriverFailed(
                    f"the server doesn't know yet that booting the image takes {format_bytes(size)} of memory",
                    hint="the node tries again once it answers",
                    details={"step": "template"},
                ) from None
            await self._clock.sleep(LOOK_SECONDS)
        await boot()

    def _put(self, size: int) -> None:
        if self._table.booting_bytes != size:
            self._table.booting_bytes = size
            if self._table.functions is not None:
                self._table.functions.on_capacity()
            self._changed()


async def _end(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
