"""What both sides of a move have in common: what they act through, what they report, and what must not be forgotten."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from weft.agent.migration.relay import Limit
from weft.agent.migration.transport import Transport
from weft.agent.network.executor import NetworkExecutor
from weft.agent.state.allocation import LocalAllocation, MigrationState
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.kinds.allocation import AllocatedMigration, MigrationReport


class NodeContext(msgspec.Struct, frozen=True):
    """The node that a side stands on; ``limit`` is for what all moves from it and to it carry together."""

    host: Host
    runtimes: Runtimes
    network: NetworkExecutor
    pools: Pools
    wire: Transport
    limit: Limit
    clock: Clock


class MigrationContext(msgspec.Struct, frozen=True):
    """What a side begins with: whose move, and what is remembered of it. ``on_part`` keeps what must not be forgotten, done
    when awaited; ``on_news`` hears that there is something new to report."""

    wanted: LocalAllocation
    part: MigrationState
    ground: NodeContext
    on_part: Callable[[MigrationState], Awaitable[None]]
    on_news: Callable[[], None]


class Role:
    """One side of a move."""

    def __init__(self, brief: MigrationContext) -> None:
        assert brief.wanted.spec.move is not None
        self.part = brief.part
        self.report = MigrationReport(key=brief.part.key, phase="preparing")
        self._wanted, self._move, self._ground = brief.wanted, brief.wanted.spec.move, brief.ground
        self._runtime = brief.ground.runtimes.of(brief.wanted)
        self._on_part, self._on_news = brief.on_part, brief.on_news

    def put(self, move: AllocatedMigration) -> None:
        """The server has said more of the move."""
        self._move = move

    async def close(self) -> None:
        """Lead it no more; what is under way is cut off."""

    def _keep(self, **fields: object) -> Awaitable[None]:
        self.part = msgspec.structs.replace(self.part, **fields)
        return self._on_part(self.part)

    def _tell(self, **fields: object) -> None:
        report = msgspec.structs.replace(self.report, **fields)
        if report != self.report:
            self.report = report
            self._on_news()
