"""What is known of a Migration when it is asked what it needs next: its spec and status, its workload, both of its sides, the
capacity held for it; and what is to be written then. Values only."""

from __future__ import annotations

import msgspec

from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.fields.allocated_migration import MigrationReport
from weft.kinds.migration import MigrationSpec, MigrationStatus
from weft.kinds.parts.workload import WorkloadSpec
from weft.objects.envelope import Condition

READY = ("Ready", "Joining")  # phases of a node that is heard of


class MigrationEndpoint(msgspec.Struct, frozen=True):
    """One of the two places; ``node_phase`` None: its node isn't in the fabric any more; ``node_limit``: how many bytes a
    second all migrations from and to it may carry, 0 is as many as they can."""

    spec: AllocationSpec
    report: AllocationReport
    node_phase: str | None = "Ready"
    deleting: bool = False
    node_limit: int = 0
    node_closed: str = ""  # why it takes nothing new, as people have said

    @property
    def heard(self) -> MigrationReport | None:
        """What its node says of this very migration."""
        migration, told = self.spec.migration, self.report.migration
        return told if migration is not None and told is not None and told.key == migration.key else None

    def says(self, *phases: str) -> bool:
        return self.heard is not None and self.heard.phase in phases


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """``vm`` None: there is no such workload, or it goes; ``place`` is where it stands while it isn't a side yet; ``rival`` an
    older Migration of it that is under way; ``reservation`` what is held for it at its target until it begins."""

    spec: MigrationSpec
    status: MigrationStatus
    deleting: bool = False
    placed: Condition | None = None
    workload: WorkloadSpec | None = None
    place: MigrationEndpoint | None = None
    rival: str = ""
    source: MigrationEndpoint | None = None
    target: MigrationEndpoint | None = None
    reservation: MigrationEndpoint | None = None
    now: float = 0.0


class Outcome(msgspec.Struct, kw_only=True):
    """``source`` and ``target``: specs to write; those that ``go`` are deleted. ``look_after`` seconds it is to be looked at
    again whatever happens."""

    status: MigrationStatus
    source: AllocationSpec | None = None
    target: AllocationSpec | None = None
    source_goes: bool = False
    target_goes: bool = False
    reservation_goes: bool = False
    look_after: float | None = None


def has_migrated_on(side: MigrationEndpoint | None) -> bool:
    """Whether its node says, for good, that another one took its guest over: of one that an older store knows as a side still."""
    return side is not None and side.report.reason == "migrated" and side.report.state == "stopped"
