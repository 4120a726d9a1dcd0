"""The common part of a migration's source and target: their context, their report, and the state that they save."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from weft.agent.flow.recorder import FlowRecorder
from weft.agent.logs.collector import LogCollector
from weft.agent.migration.relay import Limit
from weft.agent.migration.transport import Transport
from weft.agent.network.executor import NetworkExecutor
from weft.agent.samples.files import SampleFiles
from weft.agent.server.reporter import Reporter
from weft.agent.state.allocation import LocalAllocation, MigrationState
from weft.agent.state.allocation_state import AllocationState
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.trace.span import Phases
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport, is_between_clusters

log = logging.getLogger("weft.agent")


class NodeContext(msgspec.Struct, frozen=True):
    """The parts of the node through which a role acts."""

    host: Host
    runtimes: Runtimes
    network: NetworkExecutor
    pools: Pools
    samples: SampleFiles
    wire: Transport
    limit: Limit  # for all migrations of this node together
    clock: Clock
    logs: LogCollector | None = None  # None: this node keeps none
    flows: FlowRecorder | None = None  # None: this node records none
    reporter: Reporter | None = None  # takes events


class MigrationContext(msgspec.Struct, frozen=True):
    state: AllocationState  # keeps its progress, and is woken when the report changes
    local: LocalAllocation
    migration: MigrationState
    node: NodeContext


class Role:
    """This node's end of a migration."""

    def __init__(self, context: MigrationContext) -> None:
        assert context.local.spec.migration is not None
        self.migration = context.migration
        self.report = MigrationReport(key=context.migration.key, phase="preparing")
        self._state, self._local, self._node = context.state, context.local, context.node
        self._migration = context.local.spec.migration
        self._between_clusters = is_between_clusters(self._migration)
        self._runtime = context.node.runtimes.of(context.local)
        self.rest: asyncio.Task[None] | None = None  # goes on once it is closed
        self._phases = Phases()
        self._phases.enter(self.report.phase)

    def put(self, migration: AllocatedMigration) -> None:
        """The server has changed the migration's spec."""
        self._migration = migration

    @property
    def is_carrying(self) -> bool:
        """Whether its ``rest`` has something to do yet."""
        return self.rest is not None and not self.rest.done()

    async def close(self) -> None:
        """Stop leading the migration, and cut its connections, but for those of ``rest``."""

    def _keep(self, **fields: object) -> asyncio.Future[None]:
        """Save the changed fields; saved once awaited."""
        self.migration = msgspec.structs.replace(self.migration, **fields)
        if self.migration.taken:
            self._phases.enter("")
        saving = asyncio.ensure_future(self._state.keep_migration(self.migration))
        saving.add_done_callback(_log_failure)
        return saving

    def _report(self, **fields: object) -> None:
        report = msgspec.structs.replace(self.report, **fields)
        if report != self.report:
            if report.phase != self.report.phase and not self.migration.taken:
                failed = report.phase == "failed"
                self._phases.enter("" if failed else report.phase, report.message if failed else "")
            self.report = report
            self._state.wake()


def _log_failure(saving: asyncio.Future[None]) -> None:
    if not saving.cancelled() and (problem := saving.exception()) is not None:
        log.warning("%s", problem)
