"""The log of a workload that migrates follows it, as its samples do (``samples.py``): once it runs at the target, whose agent waits
for it before it reads on in the workload's console."""

from __future__ import annotations

import asyncio
import logging

from weft.agent.logs.carry import MOST_PIECES, Arriving, pack_log
from weft.agent.migration.role import NodeContext
from weft.agent.migration.samples import send_samples
from weft.agent.migration.transport import Connection
from weft.agent.state.allocation import LocalAllocation
from weft.objects.errors import InvalidInput, WeftError
from weft.protocol.migration import MigrationRequest

log = logging.getLogger("weft.agent")
CARRY_SECONDS = 10.0  # after the guest was taken over; what hasn't come by then stays behind


async def send_history(connection: Connection, node: NodeContext, local: LocalAllocation) -> None:
    """Send what was measured of it here, and what it printed; a failure only goes to the log."""
    await send_samples(connection, node, local)
    if node.logs is None:
        return
    try:
        await node.logs.drain(local)
        for piece in await asyncio.to_thread(pack_log, node.logs.store, local.spec.workload.uid):
            await connection.order(MigrationRequest("logs", logs=piece))
    except (WeftError, OSError) as problem:
        log.info("%s: its log stays on this node: %s", local.what, problem)


class LogTaker:
    """The target's end."""

    def __init__(self, node: NodeContext, local: LocalAllocation) -> None:
        self._clock, self._logs = node.clock, node.logs
        self._uid = local.spec.workload.uid
        self._arriving: Arriving | None = None
        self._pieces = 0
        self._until: float | None = None  # elapsed seconds, once the guest was taken over

    def begin(self) -> None:
        """The guest was taken over."""
        if self._logs is not None and self._until is None:
            self._until = self._clock.elapsed() + CARRY_SECONDS
            self._arriving = Arriving(self._logs.store, self._uid)
            self._logs.expect(self._uid, CARRY_SECONDS)

    async def take(self, piece: bytes) -> None:
        """Raises InvalidInput, OSError."""
        if self._arriving is None or self._logs is None or self._pieces > MOST_PIECES:
            raise InvalidInput("no log is expected")
        if self._until is not None and self._clock.elapsed() >= self._until:
            raise InvalidInput("the log comes too late: this node has gone on without it")
        self._pieces += 1
        if await asyncio.to_thread(self._arriving.take, piece):
            self._arriving = None
            self._logs.expect_no_more(self._uid)

    async def finish(self) -> None:
        """Wait for what is on its way."""
        while self._until is not None and self._arriving is not None and self._clock.elapsed() < self._until:
            await self._clock.sleep(0.05)
