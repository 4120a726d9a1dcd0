"""When a VM that was suspended for another resumes on another node: its own has stayed full for a while, and another has the
capacity now. It migrates there with its memory. Pure.
"""

from __future__ import annotations

import hashlib

from weft.contracts.journal import Event
from weft.contracts.store import Absent
from weft.informer.commit import Commit, put, unchanged
from weft.informer.view import Item, View
from weft.informer.workloads import name_of, spec_of
from weft.kinds.allocation import AllocationReport, AllocationSpec, has_given_way
from weft.kinds.migration import ENDED, MIGRATION, MIGRATIONS_BY_WORKLOAD, MigrationSpec, MigrationStatus, is_under_way
from weft.objects.identity import cut_name
from weft.objects.quantity import format_bytes, format_duration
from weft.scheduler.allocation.bind import SOURCE
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.migration.target import MigrationCandidate, decide, read_migration_candidate

LABEL = "resume"  # of Migrations made here: the node that stays full
RETRY_SECONDS = 600.0  # after one that didn't succeed


def plan_resume_elsewhere(
    view: View, engine: Engine, workload: Item, allocation: Item, strategy: str, silent: list[str], now: float
) -> Commit | None:
    """The Migration, or None: it isn't its turn, or no node has the capacity. The target is chosen as of any migration, so only one
    at a time waits for its own."""
    spec, lease = allocation.spec(AllocationSpec), allocation.spec(AllocationSpec).lease
    if lease is None or lease.suspension is None or now < lease.suspension.at + lease.suspension.elsewhere_seconds:
        return None
    if not has_given_way(spec, allocation.report(AllocationReport)) or spec_of(workload).run != "run":
        return None
    before = view.find(MIGRATIONS_BY_WORKLOAD, workload.key)
    if any(_keeps_away(item, now) for item in before):
        return None
    migration = MigrationSpec(
        workload=name_of(workload),
        mode="saved",
        reason=f"suspended for {lease.suspension.winner}; {spec.node} stays full"[:200],
    )
    migrating = read_migration_candidate(view, workload, migration, strategy, silent)
    if not isinstance(migrating, MigrationCandidate):
        return None
    row = decide(engine, migrating)[1]
    if row is None or any(_waits(item) for item in view.of_kind("migration").values()):
        return None
    last = max((item.uid for item in before), default="")
    mark = hashlib.sha256(f"{workload.uid}/{lease.suspensions}/{len(before)}/{last}".encode()).hexdigest()[:6]
    name = cut_name(workload.envelope.name, f"-{mark}")
    made = MIGRATION.make(
        name,
        migration,
        now,
        project=workload.envelope.project,
        creator=workload.envelope.creator,
        labels={LABEL: spec.node},
    )
    memory, disk = format_bytes(spec.resources.memory), format_bytes(spec.resources.disk)
    event = Event(
        "Normal",
        "ResumesElsewhere",
        f"{spec.node} has stayed full for {format_duration(now - lease.suspension.at)}, and "
        f"{engine.snapshot.names[row]} has the capacity: it "
        f"migrates by migration/{made.name}, with up to {memory} of memory and {disk} of disk",
        workload.envelope.ref,
        SOURCE,
    )
    return Commit(workload.key, [put(made)], [Absent(made.key), unchanged(workload), unchanged(allocation)], [event])


def _keeps_away(item: Item, now: float) -> bool:
    """Whether a migration of it is under way, or failed just before."""
    spec, status = item.spec(MigrationSpec), item.status(MigrationStatus)
    failed = item.envelope.labels.get(LABEL) is not None and status.phase in ENDED and status.phase != "Succeeded"
    return is_under_way(spec, status) or (failed and now < (status.ended_at or 0.0) + RETRY_SECONDS)


def _waits(item: Item) -> bool:
    """Whether one made here has no target yet."""
    status = item.status(MigrationStatus)
    return item.envelope.labels.get(LABEL) is not None and status.phase not in ENDED and not status.target
