"""Carries out the steps of one allocation, as their records say. Every step may be repeated; none decides anything."""

from __future__ import annotations

from pathlib import Path

from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.record import StepParts, Work
from weft.agent.allocation.steps.registry import STEPS
from weft.agent.allocation.trace import StepTraces
from weft.agent.migration.executor import MigrationExecutor
from weft.agent.network.executor import NetworkExecutor
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.snapshot.turns import DiskTurns
from weft.agent.workload.kind import NodeParts, Show
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.driver.host import Host


class StepExecutor:
    def __init__(
        self,
        host: Host,
        runtimes: Runtimes,
        network: NetworkExecutor,
        migrations: MigrationExecutor,
        node: NodeParts,
        snapshots: KeptSnapshots,
        turns: DiskTurns,
        traces: StepTraces | None = None,
    ) -> None:
        self.traces = traces or StepTraces(None)
        self.runtimes, self.migrations, self.turns = runtimes, migrations, turns
        self._network = network
        self._parts = StepParts(runtimes, network, migrations, node, snapshots, Path(host.state_dir) / "seeds")

    async def perform(self, step: StepName, work: Work, show: Show) -> str:
        """Do ``step``, and return a detail for people, if any; results for later steps are put into ``work``. Raises WeftError or
        OSError."""
        with self.traces.step(step, work.state):
            return await STEPS[step].perform(self._parts, work, show) or ""

    def wake_network(self) -> None:
        """Open or close ports soon, as leases say."""
        self._network.wake()
