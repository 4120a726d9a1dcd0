"""The facts that a Migration is planned from, and the outcome: what to write. Values only."""

from __future__ import annotations

import msgspec

from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.fields.allocated_migration import MigrationReport
from weft.kinds.migration import MigrationActions, MigrationMarks, MigrationSpec, MigrationStatus
from weft.kinds.parts.workload import WorkloadSpec
from weft.objects.envelope import Condition

READY = ("Ready", "Joining")  # phases of a node that sends heartbeats


class MigrationEndpoint(msgspec.Struct, frozen=True):
    """The allocation at the source or the target."""

    spec: AllocationSpec
    report: AllocationReport
    node_phase: str | None = "Ready"  # None: the node has left the fabric
    deleting: bool = False
    node_limit: int = 0  # bytes a second for all migrations from and to the node; 0: unlimited
    node_closed: str = ""  # why people let it take nothing new

    @property
    def migration_report(self) -> MigrationReport | None:
        """The node's report of this very migration."""
        migration, report = self.spec.migration, self.report.migration
        return report if migration is not None and report is not None and report.key == migration.key else None

    def reports(self, *phases: str) -> bool:
        return self.migration_report is not None and self.migration_report.phase in phases


class MigrationPlanFacts(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    spec: MigrationSpec
    actions: MigrationActions
    marks: MigrationMarks
    status: MigrationStatus
    deleting: bool = False
    placed: Condition | None = None
    workload: WorkloadSpec | None = None  # None: it doesn't exist, or is being deleted
    starts: int = 0  # its counter of starts
    place: MigrationEndpoint | None = None  # the workload's active allocation
    rival: str = ""  # an older Migration of the workload that is under way
    source: MigrationEndpoint | None = None
    target: MigrationEndpoint | None = None
    reservation: MigrationEndpoint | None = None  # capacity at its target until it begins
    now: float = 0.0


class MigrationOutcome(msgspec.Struct, kw_only=True):
    status: MigrationStatus
    source: AllocationSpec | None = None  # to write
    target: AllocationSpec | None = None
    source_goes: bool = False  # is deleted
    target_goes: bool = False
    reservation_goes: bool = False
    requeue_after: float | None = None  # seconds after which to plan again even if nothing changes


def has_migrated_on(endpoint: MigrationEndpoint | None) -> bool:
    """Whether its node reports that another one took its guest over for good: a restored store may be older than that."""
    return endpoint is not None and endpoint.report.reason == "migrated" and endpoint.report.state == "stopped"
