"""The migrations in which this node has a role, and the relocations of its disks: starts and ends the roles that lead them.

Acts through the runtime's migrations; the allocation's plan decides when.
"""

from __future__ import annotations

import contextlib
import importlib

from weft.agent.flow.recorder import FlowRecorder
from weft.agent.logs.collector import LogCollector
from weft.agent.migration.cold import ColdSource, ColdTarget, list_disks
from weft.agent.migration.disk_relocation import DiskRelocator, report_relocation
from weft.agent.migration.history import finish_carrying
from weft.agent.migration.relay import Limit
from weft.agent.migration.role import MigrationContext, NodeContext, Role
from weft.agent.migration.target import MigrationTarget, Waiter
from weft.agent.migration.transport import Transport
from weft.agent.network.executor import NetworkExecutor
from weft.agent.samples.files import SampleFiles
from weft.agent.server.reporter import Reporter
from weft.agent.snapshot.transfer import ArrivingLayers, settle_layers
from weft.agent.state.allocation import Checkpoint, DiskRelocation, LocalAllocation, MigrationState
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.departure import is_back
from weft.agent.volume.pools import Pools
from weft.agent.workload.kind import Prepared
from weft.agent.workload.runtimes import Runtimes
from weft.agent.workload.vm import plan_guest
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.migration import CanMigrate, MigrationDriver
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound


class MigrationExecutor:
    def __init__(
        self,
        host: Host,
        runtimes: Runtimes,
        network: NetworkExecutor,
        pools: Pools,
        samples: SampleFiles,
        wire: Transport,
        clock: Clock,
        logs: LogCollector | None = None,
        flows: FlowRecorder | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._runtimes, self._network = runtimes, network
        self._node = NodeContext(
            host, runtimes, network, pools, samples, wire, Limit(0, clock), clock, logs, flows, reporter
        )
        self._led: dict[str, Role] = {}  # by allocation uid
        self._left: set[Role] = set()  # those that it has left, whose rest goes on
        self._relocating: dict[str, DiskRelocator] = {}  # by allocation uid

    def is_leading(self, local: LocalAllocation, migration: MigrationState | None) -> bool:
        """Whether this process leads the allocation's migration."""
        led = self._led.get(local.uid)
        if led is None or migration is None:
            return False
        return (led.migration.key, led.migration.peer) == (migration.key, migration.peer)

    def put(self, local: LocalAllocation) -> None:
        """The server has changed the allocation's spec."""
        if (relocator := self._relocating.get(local.uid)) is not None:
            relocator.put(local)
        led = self._led.get(local.uid)
        if led is not None and local.spec.migration is not None:
            self._set_limit(local.spec.migration)
            led.put(local.spec.migration)

    def report(self, local: LocalAllocation, checkpoint: Checkpoint) -> MigrationReport | None:
        """The report of the allocation's migration, or of its disk's relocation."""
        return self._report(local, checkpoint.migration) or self._report_relocation(local, checkpoint.relocation)

    def _report(self, local: LocalAllocation, migration: MigrationState | None) -> MigrationReport | None:
        allocated, led = local.spec.migration, self._led.get(local.uid)
        astray = migration is not None and (allocated is None or migration.key != allocated.key) and not local.deleting
        if migration is not None and astray and migration.role == "source":  # an older store doesn't have it
            return MigrationReport(
                key=migration.key,
                phase="handedOver",
                message=f"to node {migration.node}",
                peer=migration.node,
                peer_allocation=migration.peer,
            )
        if allocated is None:
            return None
        if migration is None or migration.key != allocated.key:
            return None if local.deleting else MigrationReport(key=allocated.key, phase="preparing")
        if migration.over and migration.role == "target":  # a guest that arrived and was removed reports nothing more
            return None if migration.taken else MigrationReport(key=allocated.key, phase="abandoned")
        if led is None and migration.failed and not migration.taken:
            return MigrationReport(
                key=allocated.key, phase="failed", message="it had failed before the agent restarted"
            )
        if led is None:
            phase = "takenOver" if migration.role == "target" else "handedOver"
            return MigrationReport(key=allocated.key, phase=phase if migration.taken else "preparing")  # type: ignore[arg-type]
        return led.report

    def _report_relocation(self, local: LocalAllocation, relocation: DiskRelocation | None) -> MigrationReport | None:
        led, order = self._relocating.get(local.uid), local.spec.storage
        if order is not None and led is not None and led.relocation.key == order.key:
            return led.report
        return report_relocation(local, relocation)

    async def open(
        self, state: AllocationState, local: LocalAllocation, migration: MigrationState, prepared: Prepared
    ) -> None:
        """Begin to wait for the guest, or its disks. Raises DriverFailed, InvalidInput."""
        await self.drop(local.uid)
        context = self._begin(state, local, migration)
        waiter: Waiter
        if _is_cold(local):
            waiter = ColdTarget(context, prepared)
        else:
            layers = ArrivingLayers(self._node.pools, local, list_disks(local))
            waiter = MigrationTarget(context, plan_guest(local, prepared), self._driver_of(local), layers)
        self._led[local.uid] = waiter
        try:
            await waiter.open()
        except BaseException:
            await self.drop(local.uid)
            raise

    async def send(self, state: AllocationState, local: LocalAllocation, migration: MigrationState) -> None:
        """Begin or continue to send the guest, or its disks."""
        await self.drop(local.uid)
        late = importlib.import_module("weft.agent.migration.source")  # with all that plans a transfer
        context = self._begin(state, local, migration)
        source = ColdSource(context) if _is_cold(local) else late.MigrationSource(context, self._driver_of(local))
        self._led[local.uid] = source
        source.start()

    async def give_up(self, local: LocalAllocation, migration: MigrationState) -> bool:
        """End the target's wait for the guest: False if it may have run here already. Raises WeftError."""
        led = self._led.get(local.uid)
        await self.drop(local.uid)
        if migration.taken or (led is not None and led.migration.taken):
            return False
        self._network.handover.undo_switch(local)
        runtime = self._runtimes.of(local)
        try:
            if not migration.cold and isinstance(runtime, CanMigrate):
                await runtime.migrations.give_up(local.id, migration.key)
        except IllegalTransition:
            return False
        return True

    async def leave(self, local: LocalAllocation, migration: MigrationState) -> None:
        """Drop a guest that has left; one that still runs here is stopped. Raises WeftError."""
        await self.drop(local.uid)
        runtime = self._runtimes.of(local)
        if isinstance(runtime, CanMigrate):
            with contextlib.suppress(IllegalTransition, NotFound):
                await runtime.migrations.leave(local.id, migration.key)
                return
        await runtime.stop(local.id, grace_seconds=local.spec.grace_seconds)

    async def cancel(self, local: LocalAllocation, migration: MigrationState) -> None:
        """Cancel at the source: the guest stays. Raises IllegalTransition if it may run elsewhere."""
        await self.drop(local.uid)
        never_ran = is_back(local.spec, migration)
        if migration.cold and not never_ran:
            raise IllegalTransition(
                f"{local.what}: its disks were sent to node {migration.node}, which may have started it"
            )
        runtime = self._runtimes.of(local)
        if isinstance(runtime, CanMigrate):  # else it takes no part in migrations
            with contextlib.suppress(NotFound):
                await runtime.migrations.cancel(local.id, migration.key, never_ran=never_ran)
        self._network.handover.undo_switch(local)

    async def settle(self, local: LocalAllocation, migration: MigrationState) -> None:
        """End a migration at the target: the guest stays here. Raises IllegalTransition if it hasn't arrived."""
        if not migration.taken and migration.cold:
            raise IllegalTransition(f"{local.what} has not arrived: some of its disks are missing")
        if not migration.taken:
            facts = await self._driver_of(local).progress(local.id, migration.key)
            if facts.phase != "takenOver":
                raise IllegalTransition(f"{local.what} has not arrived: its migration is {facts.phase}")
        await settle_layers(self._node.pools, local, list_disks(local))
        await self.drop(local.uid)

    async def relocate(
        self, state: AllocationState, local: LocalAllocation, relocation: DiskRelocation, prepared: Prepared
    ) -> None:
        """Begin or continue to relocate a disk to another pool."""
        await self.drop_relocation(local.uid)
        relocator = self._relocating[local.uid] = DiskRelocator(state, local, relocation, prepared, self._node)
        relocator.start()

    def is_relocating(self, uid: str) -> bool:
        """Whether a disk of that allocation is being relocated."""
        return uid in self._relocating and self._relocating[uid].under_way

    async def drop(self, uid: str) -> None:
        """Stop leading this allocation's migration."""
        if (led := self._led.pop(uid, None)) is not None:
            await led.close()
            if led.rest is not None:
                self._left.add(led)
                led.rest.add_done_callback(lambda _: self._left.discard(led))

    async def drop_relocation(self, uid: str) -> None:
        """Stop leading a relocation of this allocation's disks."""
        if (led := self._relocating.pop(uid, None)) is not None:
            await led.close()

    async def close(self) -> None:
        for uid in list(self._led):
            await self.drop(uid)
        for uid in list(self._relocating):
            await self.drop_relocation(uid)
        await finish_carrying(self._left, self._node.clock)

    def _driver_of(self, local: LocalAllocation) -> MigrationDriver:
        runtime = self._runtimes.of(local)
        if not isinstance(runtime, CanMigrate):
            raise InvalidInput(
                f"{local.what}: runtime {runtime.name} has no live migration",
                reason="unsupported",
                hint="migrate it with --cold",
            )
        return runtime.migrations

    def _set_limit(self, migration: AllocatedMigration) -> None:
        """Set the node's limit for all migrations: the newest spec wins."""
        self._node.limit.set(migration.node_bytes_per_second)

    def _begin(self, state: AllocationState, local: LocalAllocation, migration: MigrationState) -> MigrationContext:
        if local.spec.migration is not None:
            self._set_limit(local.spec.migration)
        return MigrationContext(state, local, migration, self._node)


def _is_cold(local: LocalAllocation) -> bool:
    return local.spec.migration is not None and local.spec.migration.mode == "cold"
