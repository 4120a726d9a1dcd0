"""The samples of a workload that migrates follow it, once it runs at the target: neither its pause nor its migration waits for
them. The ends of the migration stay open a little longer for that."""

from __future__ import annotations

import asyncio
import logging

from weft.agent.migration.role import NodeContext
from weft.agent.migration.transport import Connection
from weft.agent.samples.carry import MOST_PIECES
from weft.agent.state.allocation import LocalAllocation
from weft.contracts.clock import Clock
from weft.objects.errors import InvalidInput, WeftError
from weft.protocol.migration import MigrationRequest

log = logging.getLogger("weft.agent")
CARRY_SECONDS = 5.0  # after the guest was taken over; what hasn't come by then stays behind
MOST_CARRY_SECONDS = 10.0  # with its log


async def send_samples(connection: Connection, node: NodeContext, local: LocalAllocation) -> None:
    """Send all that was measured of it here; a failure only goes to the log."""
    try:
        for piece in (await node.samples.pack(local.spec.workload.uid))[:MOST_PIECES]:
            await connection.order(MigrationRequest("samples", samples=piece))
        await connection.order(MigrationRequest("samples"))
    except (WeftError, OSError) as problem:
        log.info("%s: its samples stay on this node: %s", local.what, problem)


async def finish_carrying(carrying: asyncio.Task[None] | None, clock: Clock) -> None:
    """Wait for what follows the guest, but not for long."""
    until = clock.elapsed() + MOST_CARRY_SECONDS
    while carrying is not None and not carrying.done():
        if clock.elapsed() >= until:
            carrying.cancel()
        await clock.sleep(0.05)


class SamplesTaker:
    """The target's end."""

    def __init__(self, node: NodeContext, local: LocalAllocation) -> None:
        self._node, self._local = node, local
        self._pieces = 0
        self._done = asyncio.Event()
        self._until: float | None = None  # elapsed seconds, once the guest was taken over

    def begin(self) -> None:
        """The guest was taken over."""
        self._until = self._node.clock.elapsed() + CARRY_SECONDS

    async def take(self, piece: bytes) -> None:
        """Raises InvalidInput, OSError."""
        if self._until is None or self._pieces > MOST_PIECES:
            raise InvalidInput("no samples are expected")
        self._pieces += 1
        if piece:
            await self._node.samples.take(self._local.spec.workload.uid, piece, self._node.clock.now())
        else:
            self._done.set()

    async def finish(self) -> None:
        """Wait for those that are on their way."""
        clock = self._node.clock
        while self._until is not None and not self._done.is_set() and clock.elapsed() < self._until:
            await clock.sleep(0.05)
