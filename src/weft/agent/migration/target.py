"""The target of a migration: a listener, and a machine that stays paused until the source confirms that the guest will never run
there again. Woken by the source's requests; decides nothing by itself, and starts nothing.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from weft.agent.migration.history import HistoryTaker
from weft.agent.migration.role import MigrationContext, Role
from weft.agent.snapshot.transfer import ArrivingLayers
from weft.agent.workload.console_log import take_printed
from weft.contracts.driver.migration import MigrationDriver, MigrationSettings
from weft.contracts.driver.runtime import GuestPlan
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound, Unavailable, WeftError
from weft.protocol.migration import Channel, MigrationAnswer, MigrationRequest


class Waiter(Role, ABC):
    """A role with a listener."""

    def __init__(self, context: MigrationContext) -> None:
        super().__init__(context)
        node = self._node
        self._listener = node.wire.make_listener(
            self.migration.key, self._migration.peer_uid, self._answer, [node.limit], self._migration.peer_ca
        )
        self._history = HistoryTaker(node, self._local, between_clusters=self._between_clusters)

    async def open(self) -> None:
        """Open the listener for the source. Raises DriverFailed, InvalidInput."""
        place = self._listener.open(self._node.host.underlay_address, self.migration.port)
        self._keep(port=self._listener.port)
        self._report(phase="waiting", address=place)
        await self._recall()

    async def close(self) -> None:
        if self._history.is_awaited and self.rest is None:
            self.rest = asyncio.ensure_future(self._take_rest())
        elif self.rest is None:
            self._listener.close()

    @property
    def is_carrying(self) -> bool:
        return super().is_carrying and self._history.is_awaited

    async def _take_rest(self) -> None:
        try:
            await self._history.finish()
        finally:
            self._listener.close()

    async def _answer(self, ask: MigrationRequest) -> MigrationAnswer:
        """Raises WeftError, OSError."""
        if await self._history.take(ask):
            return MigrationAnswer(message=self.report.phase)
        self._history.note_mark(ask.log)
        answer = await self._respond(ask)
        if ask.do == "takeOver":
            self._history.begin()  # of one that an earlier agent took over
        return answer

    async def _recall(self) -> None:
        """Continue from the state of an earlier agent."""

    @abstractmethod
    async def _respond(self, ask: MigrationRequest) -> MigrationAnswer:
        """The answer to a request of the source. Raises WeftError, OSError."""


class MigrationTarget(Waiter):
    """The target of a live migration; ``plan`` is the guest's machine here."""

    def __init__(
        self, context: MigrationContext, plan: GuestPlan, driver: MigrationDriver, layers: ArrivingLayers
    ) -> None:
        super().__init__(context)
        self._plan, self._driver, self._layers = plan, driver, layers
        if not self._between_clusters:
            self._listener.receive = layers
        self._expected: MigrationSettings | None = None
        self._stopped_at: float | None = None  # set by the source's request

    async def _recall(self) -> None:
        try:
            facts = await self._driver.progress(self._plan.id, self.migration.key)
        except (IllegalTransition, NotFound):
            return  # nothing has come yet
        except Unavailable as problem:
            self._report(phase="failed", reason=problem.token, message=problem.message)
            return
        if facts.phase == "takenOver":
            await self._layers.settle()
            self._take()
        elif facts.phase == "failed":
            self._report(phase="failed", reason="driverFailed", message=facts.message or "the machine has ended")

    async def _respond(self, ask: MigrationRequest) -> MigrationAnswer:
        if ask.do == "expect":
            await self._expect(ask)
        elif ask.do == "stopped":
            self._stopped_at = self._node.clock.elapsed()
            if not self._between_clusters:
                self._node.network.handover.switch_here(self._local)
        elif ask.do == "resumed" and not self._between_clusters:
            self._node.network.handover.undo_switch(self._local)
        elif ask.do == "takeOver":
            await self._take_over(ask)
        elif ask.do == "layers" and self._between_clusters:
            raise InvalidInput("disks are copied whole between clusters", reason="unsupported")
        elif ask.do == "layers" and not self.migration.taken:
            await self._layers.expect(ask.layers)
        if ask.flows and not self._between_clusters:
            await self._node.network.handover.seed_flows(self._local, ask.flows)
        return MigrationAnswer(message=self.report.phase)

    async def _expect(self, ask: MigrationRequest) -> None:
        if ask.guest is None or ask.settings is None:
            raise InvalidInput("the request lacks guest or settings")
        if self._expected not in (None, ask.settings):
            await self._driver.give_up(self._plan.id, self.migration.key)  # its machine waits for another mode
        self._plan = await self._layers.adopt(self._plan)
        sockets = await self._driver.expect(self._plan, ask.guest, self.migration.key, ask.settings)
        self._expected = ask.settings
        take_printed(self._runtime, self._plan.id, ask.printed)
        channels: dict[Channel, str] = {"memory": sockets.memory, "disks": sockets.disks}
        self._listener.lead(channels)
        self._report(phase="waiting", reason="", message="")

    async def _take_over(self, ask: MigrationRequest) -> None:
        asked_at = self._node.clock.elapsed()
        if not self.migration.taken:
            take_printed(self._runtime, self._plan.id, ask.printed)
        try:
            await self._driver.take_over(self._plan.id, self.migration.key)
        except WeftError as problem:
            self._report(phase="failed", reason=problem.token, message=problem.message)
            raise
        now = self._node.clock.elapsed()
        pause = round((now - self._stopped_at) * 1000) if self._stopped_at is not None else 0
        elapsed = ask.elapsed_ms + round((now - asked_at) * 1000) if ask.elapsed_ms else 0
        self._history.begin()
        self._take(pause_ms=pause, elapsed_ms=elapsed, sent_bytes=ask.sent_bytes, passes=ask.passes)
        await self._layers.settle()  # before the answer: the source then forgets the snapshots

    def _take(self, **figures: int) -> None:
        self._keep(taken=True)  # not awaited: the runtime has saved it already
        self._report(phase="takenOver", reason="", message="", **figures)
