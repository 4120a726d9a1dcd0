"""The history of a workload that migrates, its samples, its flows and its log, follows it once it runs at the target: neither its
pause nor its migration waits for that. The ends of the migration stay open a little longer, and the target's agent waits for the
log before it reads on in the workload's console."""

from __future__ import annotations

import asyncio
import logging

from weft.agent.flow.files import MOST_PIECES as MOST_FLOW_PIECES
from weft.agent.flow.files import ArrivingFlows
from weft.agent.logs.carry import MOST_PIECES as MOST_LOG_PIECES
from weft.agent.logs.carry import Arriving, pack_log
from weft.agent.migration.role import NodeContext
from weft.agent.migration.transport import Connection
from weft.agent.samples.carry import MOST_PIECES
from weft.agent.state.allocation import LocalAllocation
from weft.contracts.clock import Clock
from weft.objects.errors import InvalidInput, WeftError
from weft.protocol.migration import LogMark, MigrationRequest

log = logging.getLogger("weft.agent")
SAMPLES_SECONDS = 5.0  # after the guest was taken over; what hasn't come by then stays behind
LOG_SECONDS = 10.0  # it comes after the samples


async def mark_log(node: NodeContext, local: LocalAllocation) -> LogMark | None:
    """How far the log of its console has come here; None: it has none."""
    if node.logs is None:
        return None
    number, cursor = await asyncio.to_thread(node.logs.store.standing, local.spec.workload.uid)
    position = cursor.position if cursor is not None else ""
    return LogMark(number, int(position)) if position.isdecimal() else None


async def send_history(
    connection: Connection, node: NodeContext, local: LocalAllocation, *, between_clusters: bool = False
) -> None:
    """Send what was measured of it here, its flows, and what it printed; a failure only goes to the log. Another cluster gets no
    flows, which name workloads of this one, and a log without the uid of this one's workload."""
    await _send_samples(connection, node, local)
    if not between_clusters:
        await _send_flows(connection, node, local)
    if node.logs is None:
        return
    try:
        await node.logs.drain(local)
        for piece in await asyncio.to_thread(
            pack_log, node.logs.store, local.spec.workload.uid, named=not between_clusters
        ):
            await connection.order(MigrationRequest("logs", logs=piece))
    except (WeftError, OSError) as problem:
        log.info("%s: its log stays on this node: %s", local.what, problem)


async def _send_samples(connection: Connection, node: NodeContext, local: LocalAllocation) -> None:
    """Send all that was measured of it here; a failure only goes to the log."""
    try:
        for piece in (await node.samples.pack(local.spec.workload.uid))[:MOST_PIECES]:
            await connection.order(MigrationRequest("samples", samples=piece))
        await connection.order(MigrationRequest("samples"))
    except (WeftError, OSError) as problem:
        log.info("%s: its samples stay on this node: %s", local.what, problem)


async def _send_flows(connection: Connection, node: NodeContext, local: LocalAllocation) -> None:
    if node.flows is None:
        return
    try:
        for piece in await asyncio.to_thread(node.flows.pack, local.spec.workload.uid):
            await connection.order(MigrationRequest("traffic", traffic=piece))
    except (WeftError, OSError) as problem:
        log.info("%s: its flows stay on this node: %s", local.what, problem)


async def finish_carrying(carrying: asyncio.Task[None] | None, clock: Clock) -> None:
    """Wait for what follows the guest, but not for long."""
    until = clock.elapsed() + LOG_SECONDS
    while carrying is not None and not carrying.done():
        if clock.elapsed() >= until:
            carrying.cancel()
        await clock.sleep(0.05)


class SamplesTaker:
    """The target's end for the samples."""

    def __init__(self, node: NodeContext, local: LocalAllocation) -> None:
        self._node, self._local = node, local
        self._pieces = 0
        self._done = asyncio.Event()
        self._until: float | None = None  # elapsed seconds, once the guest was taken over

    def begin(self) -> None:
        """The guest was taken over."""
        self._until = self._node.clock.elapsed() + SAMPLES_SECONDS

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


class FlowsTaker:
    """The target's end for the folded flows. They come between the samples and the log, so that nothing waits for them."""

    def __init__(self, node: NodeContext, local: LocalAllocation) -> None:
        self._flows, self._clock = node.flows, node.clock
        self._uid = local.spec.workload.uid
        self._arriving: ArrivingFlows | None = None
        self._pieces = 0

    def begin(self) -> None:
        """The guest was taken over."""
        if self._pieces == 0:
            self._arriving = ArrivingFlows()

    async def take(self, piece: bytes) -> None:
        """Raises InvalidInput, OSError."""
        if self._arriving is None or self._flows is None or self._pieces > MOST_FLOW_PIECES:
            raise InvalidInput("no flows are expected")
        self._pieces += 1
        now = self._clock.now()
        intervals = await asyncio.to_thread(self._arriving.take, piece, now)
        if intervals is not None:
            self._arriving = None
            await asyncio.to_thread(self._flows.files.take, self._uid, intervals, now)


class LogTaker:
    """The target's end for the log."""

    def __init__(self, node: NodeContext, local: LocalAllocation, *, between_clusters: bool = False) -> None:
        self._clock, self._logs = node.clock, node.logs
        self._uid, self._named = local.spec.workload.uid, not between_clusters
        self._arriving: Arriving | None = None
        self._pieces = 0
        self._until: float | None = None  # elapsed seconds, once the guest was taken over
        self.mark: LogMark | None = None

    def begin(self) -> None:
        """The guest was taken over."""
        if self._logs is not None and self._until is None:
            self._until = self._clock.elapsed() + LOG_SECONDS
            self._arriving = Arriving(self._logs.store, self._uid, named=self._named)
            self._logs.expect(self._uid, LOG_SECONDS, self.mark)

    async def take(self, piece: bytes) -> None:
        """Raises InvalidInput, OSError."""
        if self._arriving is None or self._logs is None or self._pieces > MOST_LOG_PIECES:
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
