"""How the agent stands, for who asks it on its machine: whether it hears the server, and what waits for that."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable

import msgspec

from weft.agent.server.line import ServerLine
from weft.agent.server.outbox import OutboxState
from weft.agent.server.reporter import Reporter
from weft.agent.state.wall_clock import WallClock
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host

UNHEARD_SECONDS = 90.0  # longer than a node that is heard: what an earlier agent noted is a minute old at most


class DiskState(msgspec.Struct, frozen=True):
    """Bytes of the disk with the node's folder."""

    total: int
    free: int


class ClockState(msgspec.Struct, frozen=True):
    """``now`` in unix seconds, as the agent counts; ``behind``: the machine's clock shows a time that has been already;
    ``synchronized``: a time service keeps it; None: unknown."""

    now: float
    behind: bool
    synchronized: bool | None


class AgentReadiness(msgspec.Struct, frozen=True):
    """The answer of ``/readyz``. Null: never, or not offline."""

    node: str
    ready: bool  # its guests are known and cared for
    contact_age_seconds: float | None  # since the server's newest answer to a report
    offline_since: float | None  # unix seconds
    outbox: OutboxState
    disk: DiskState
    clock: ClockState


class ReadinessSource:
    def __init__(self, host: Host, line: ServerLine, reporter: Reporter, wall: WallClock, clock: Clock) -> None:
        self._host, self._line, self._reporter, self._wall, self._clock = host, line, reporter, wall, clock
        self.has_started = False
        self.read_synchronized: Callable[[], bool | None] = lambda: None

    def read(self) -> AgentReadiness:
        now, age = self._wall.now(), self._find_age()
        disk = DiskState(0, 0)
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(self._host.state_dir)
            disk = DiskState(usage.total, usage.free)
        return AgentReadiness(
            node=self._host.node,
            ready=self.has_started,
            contact_age_seconds=round(age, 3) if age is not None else None,
            offline_since=round(now - age, 3) if age is not None and self._is_offline(age) else None,
            outbox=self._reporter.outbox.state,
            disk=disk,
            clock=ClockState(round(now, 3), self._wall.behind, self.read_synchronized()),
        )

    def _is_offline(self, age: float) -> bool:
        """Whether the agent is offline; also before the first try of an agent whose predecessor wasn't answered: nothing has failed
        yet, but nobody hears it."""
        return not self._line.works or (self._reporter.answered_at == -math.inf and age > UNHEARD_SECONDS)

    def _find_age(self) -> float | None:
        """None if the server has never answered."""
        if self._reporter.answered_at > -math.inf:
            return self._clock.elapsed() - self._reporter.answered_at
        earlier = self._reporter.outbox.contact_at
        return max(0.0, self._wall.now() - earlier) if earlier is not None else None
