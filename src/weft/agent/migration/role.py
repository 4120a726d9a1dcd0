"""What both sides of a move have in common: what they act through, what they report, and what must not be forgotten."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from weft.agent.migration.relay import Limit
from weft.agent.migration.transport import Wire
from weft.agent.network.executor import NetworkKeeper
from weft.agent.state.allocation import Part, Wanted
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.kinds.allocation import AllocatedMove, MoveReport


class Ground(msgspec.Struct, frozen=True):
    """The node that a side stands on; ``limit`` is for what all moves from it and to it carry together."""

    host: Host
    runtimes: Runtimes
    network: NetworkKeeper
    pools: Pools
    wire: Wire
    limit: Limit
    clock: Clock


class Brief(msgspec.Struct, frozen=True):
    """What a side begins with: whose move, and what is remembered of it. ``on_part`` keeps what must not be forgotten, done
    when awaited; ``on_news`` hears that there is something new to report."""

    wanted: Wanted
    part: Part
    ground: Ground
    on_part: Callable[[Part], Awaitable[None]]
    on_news: Callable[[], None]


class Side:
    """One side of a move."""

    def __init__(self, brief: Brief) -> None:
        assert brief.wanted.spec.move is not None
        self.part = brief.part
        self.report = MoveReport(key=brief.part.key, phase="preparing")
        self._wanted, self._move, self._ground = brief.wanted, brief.wanted.spec.move, brief.ground
        self._runtime = brief.ground.runtimes.of(brief.wanted)
        self._on_part, self._on_news = brief.on_part, brief.on_news

    def put(self, move: AllocatedMove) -> None:
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
