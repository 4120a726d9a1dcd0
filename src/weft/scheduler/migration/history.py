"""The lesson of ended Migrations for the next one, which its source gets with its migration. Pure."""

from __future__ import annotations

import heapq

from weft.informer.view import Item, View
from weft.kinds.fields.allocated_migration import MigrationLesson
from weft.kinds.migration import MigrationSpec, MigrationStatus, read_workload
from weft.objects.identity import object_key
from weft.transfer.calibration import EndedMigration, learn
from weft.transfer.history import was_kept_slow

MOST = 100  # the newest ones


def read_lesson(view: View, workload: str, source: str, target: str) -> MigrationLesson:
    """The lesson for a migration of the workload with the key ``workload`` between these nodes."""
    ended = [past for item in view.of_kind("migration").values() if (past := read_ended(item)) is not None]
    return learn(heapq.nlargest(MOST, ended, key=lambda past: past.ended_at), workload, source, target)


def read_ended(item: Item) -> EndedMigration | None:
    """None unless it has succeeded, and both its plan and its actual cost are known."""
    status = item.status(MigrationStatus)
    spec = item.spec(MigrationSpec)
    if status.phase != "Succeeded" or status.plan is None or status.actual is None or spec.mode == "storage":
        return None
    kind, name = read_workload(spec)
    return EndedMigration(
        workload=object_key(kind, item.envelope.project, name),
        source=status.source,
        target=status.target,
        plan=status.plan,
        duration_seconds=status.actual.duration_seconds,
        pause_seconds=status.actual.pause_ms / 1000,
        bytes=status.actual.bytes,
        ended_at=status.ended_at or 0.0,
        limited=was_kept_slow(spec, status),
    )
