"""The moves that this node has a part in: who leads each, and the steps at its beginning and its end.

Acts through the runtime's moves; knows nothing of what comes before and after, which the allocation's plan says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

from weft.agent.migration.cold import ColdSource, ColdTarget
from weft.agent.migration.relay import Limit
from weft.agent.migration.role import MigrationContext, NodeContext, Role
from weft.agent.migration.source import Source
from weft.agent.migration.target import Target, Waiter
from weft.agent.migration.transport import Transport
from weft.agent.network.executor import NetworkExecutor
from weft.agent.state.allocation import DiskRelocation, LocalAllocation, MigrationState
from weft.agent.state.departure import is_back
from weft.agent.volume.pools import Pools
from weft.agent.volume.relocation import DiskRelocator, report_relocation
from weft.agent.workload.runtimes import Runtimes
from weft.agent.workload.vm import Prepared, plan_guest
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.migration import CanMigrate, MigrationDriver
from weft.kinds.allocation import AllocatedMigration, MigrationReport
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound


class MigrationExecutor:
    """By allocation; ``on_part(uid, part)`` hears what must not be forgotten, ``on_news(uid)`` that a report has changed."""

    def __init__(
        self,
        host: Host,
        runtimes: Runtimes,
        network: NetworkExecutor,
        pools: Pools,
        wire: Transport,
        clock: Clock,
        on_part: Callable[[str, MigrationState], Awaitable[None]],
        on_news: Callable[[str], None],
        on_store: Callable[[str, DiskRelocation], Awaitable[None]],
    ) -> None:
        self._runtimes, self._network = runtimes, network
        self._ground = NodeContext(host, runtimes, network, pools, wire, Limit(0, clock), clock)
        self._on_part, self._on_news, self._on_store = on_part, on_news, on_store
        self._led: dict[str, Role] = {}
        self._storing: dict[str, DiskRelocator] = {}

    def is_leading(self, wanted: LocalAllocation, part: MigrationState | None) -> bool:
        """Whether the move that ``wanted`` is a side of is being led here."""
        led = self._led.get(wanted.uid)
        if led is None or part is None:
            return False
        return (led.part.key, led.part.peer) == (part.key, part.peer)

    def put(self, wanted: LocalAllocation) -> None:
        """The server has said more of the move."""
        if (storing := self._storing.get(wanted.uid)) is not None:
            storing.put(wanted)
        led = self._led.get(wanted.uid)
        if led is not None and wanted.spec.move is not None:
            self._keep_to(wanted.spec.move)
            led.put(wanted.spec.move)

    def report(self, wanted: LocalAllocation, part: MigrationState | None) -> MigrationReport | None:
        """What this node says of the allocation's move."""
        move, led = wanted.spec.move, self._led.get(wanted.uid)
        astray = part is not None and (move is None or part.key != move.key) and not wanted.deleting
        if part is not None and astray and part.side == "source":  # an older store knows nothing of that move
            return MigrationReport(key=part.key, phase="handedOver", message=f"to node {part.node}")
        if move is None:
            return None
        if part is None or part.key != move.key:
            return None if wanted.deleting else MigrationReport(key=move.key, phase="preparing")
        if part.over and part.side == "target":  # what came, and is gone since, says that it has moved on
            return None if part.taken else MigrationReport(key=move.key, phase="abandoned")
        if led is None:
            phase = "takenOver" if part.side == "target" else "handedOver"
            return MigrationReport(key=move.key, phase=phase if part.taken else "preparing")  # type: ignore[arg-type]
        return led.report

    async def open(self, wanted: LocalAllocation, prepared: Prepared) -> None:
        """Wait for the guest, or its disks. Raises DriverFailed, InvalidInput."""
        await self.drop(wanted.uid)
        assert prepared.part is not None
        brief = self._brief(wanted, prepared.part)
        waiter: Waiter
        if _is_cold(wanted):
            waiter = ColdTarget(brief, prepared)
        else:
            waiter = Target(brief, plan_guest(wanted, prepared), self._moves(wanted))
        self._led[wanted.uid] = waiter
        try:
            await waiter.open()
        except BaseException:
            await self.drop(wanted.uid)
            raise

    async def send(self, wanted: LocalAllocation, part: MigrationState) -> None:
        """Begin to send the guest, or its disks, or go on with it."""
        await self.drop(wanted.uid)
        brief = self._brief(wanted, part)
        source: Source | ColdSource
        if _is_cold(wanted):
            source = ColdSource(brief)
        else:
            source = Source(brief, self._moves(wanted))
        self._led[wanted.uid] = source
        source.start()

    async def give_up(self, wanted: LocalAllocation, part: MigrationState) -> bool:
        """End what waits for the guest: False if it may have run here already. Raises WeftError."""
        led = self._led.get(wanted.uid)
        await self.drop(wanted.uid)
        if part.taken or (led is not None and led.part.taken):
            return False
        self._network.handover.undo_switch(wanted)
        runtime = self._runtimes.of(wanted)
        try:
            if not part.cold and isinstance(runtime, CanMigrate):
                await runtime.moves.give_up(wanted.id, part.key)
        except IllegalTransition:
            return False
        return True

    async def leave(self, wanted: LocalAllocation, part: MigrationState) -> None:
        """Let go of a guest that has gone; one that runs here still is ended. Raises WeftError."""
        await self.drop(wanted.uid)
        runtime = self._runtimes.of(wanted)
        if isinstance(runtime, CanMigrate):
            with contextlib.suppress(IllegalTransition, NotFound):
                await runtime.moves.leave(wanted.id, part.key)
                return
        await runtime.stop(wanted.id, grace_seconds=wanted.spec.grace_seconds)

    async def cancel(self, wanted: LocalAllocation, part: MigrationState) -> None:
        """The guest stays. Raises IllegalTransition for one that may run elsewhere."""
        await self.drop(wanted.uid)
        never_ran = is_back(wanted.spec, part)
        if part.cold and not never_ran:
            raise IllegalTransition(
                f"{wanted.what}: its disks were sent to node {part.node}, which may have started it"
            )
        runtime = self._runtimes.of(wanted)
        if isinstance(runtime, CanMigrate):  # else it knows of no moves
            with contextlib.suppress(NotFound):
                await runtime.moves.cancel(wanted.id, part.key, never_ran=never_ran)
        self._network.handover.undo_switch(wanted)

    async def settle(self, wanted: LocalAllocation, part: MigrationState) -> None:
        """The guest is here to stay. Raises IllegalTransition for one that hasn't come."""
        if not part.taken and part.cold:
            raise IllegalTransition(f"{wanted.what} has not arrived: some of its disks are missing")
        if not part.taken:
            facts = await self._moves(wanted).progress(wanted.id, part.key)
            if facts.phase != "takenOver":
                raise IllegalTransition(f"{wanted.what} has not arrived: its migration is {facts.phase}")
        await self.drop(wanted.uid)

    async def drop(self, uid: str) -> None:
        """Lead this allocation's move no more."""
        led = self._led.pop(uid, None)
        if led is not None:
            await led.close()

    async def close(self) -> None:
        for uid in list(self._led):
            await self.drop(uid)
        for uid in list(self._storing):
            await self.drop_storage(uid)

    def is_storing(self, uid: str) -> bool:
        """Whether a disk of that allocation is being moved to another pool."""
        return uid in self._storing and self._storing[uid].under_way

    def report_storage(self, wanted: LocalAllocation, store: DiskRelocation | None) -> MigrationReport | None:
        """What this node says of the move of an allocation's disk to another pool."""
        led, order = self._storing.get(wanted.uid), wanted.spec.storage
        if order is not None and led is not None and led.store.key == order.key:
            return led.report
        return report_relocation(wanted, store)

    async def relocate(self, wanted: LocalAllocation, store: DiskRelocation, prepared: Prepared) -> None:
        """Begin to move a disk to another pool, or go on with it."""
        await self.drop_storage(wanted.uid)
        uid, ground = wanted.uid, self._ground
        mover = self._storing[uid] = DiskRelocator(
            wanted,
            store,
            prepared,
            ground.runtimes.of(wanted),
            ground.pools,
            ground.clock,
            lambda store: self._on_store(uid, store),
            lambda: self._on_news(uid),
        )
        mover.start()

    async def drop_storage(self, uid: str) -> None:
        """Lead no move of this allocation's disks any more."""
        if (led := self._storing.pop(uid, None)) is not None:
            await led.close()

    def _moves(self, wanted: LocalAllocation) -> MigrationDriver:
        runtime = self._runtimes.of(wanted)
        if not isinstance(runtime, CanMigrate):
            raise InvalidInput(
                f"{wanted.what}: runtime {runtime.name} has no live migration",
                reason="unsupported",
                hint="migrate it with --cold",
            )
        return runtime.moves

    def _keep_to(self, move: AllocatedMigration) -> None:
        """What its node may carry for all moves: of several, the one that was heard of last says it."""
        self._ground.limit.set(move.node_bytes_per_second)

    def _brief(self, wanted: LocalAllocation, part: MigrationState) -> MigrationContext:
        uid = wanted.uid
        if wanted.spec.move is not None:
            self._keep_to(wanted.spec.move)
        return MigrationContext(
            wanted, part, self._ground, lambda part: self._on_part(uid, part), lambda: self._on_news(uid)
        )


def _is_cold(wanted: LocalAllocation) -> bool:
    return wanted.spec.move is not None and wanted.spec.move.mode == "cold"
