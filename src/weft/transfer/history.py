"""The migrations that have succeeded, read from Migrations, and the forecast of the next one. Pure."""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.kinds.migration import MigrationForecast, MigrationSpec, MigrationStatus, read_workload
from weft.kinds.node import NodeSpec
from weft.objects.identity import object_key
from weft.transfer.forecast import PastMigration, forecast

NEAR_LIMIT = 0.5  # of a limit: a migration is slower in its beginning and its end


def foresee(
    view: View, workload: str, nodes: tuple[str, str], *, mode: str, memory: int, bytes_per_second: int
) -> MigrationForecast:
    """The forecast of a migration of the workload with that key between these nodes, within the limits of both."""
    found = (view.get(object_key("node", None, name)) for name in nodes)
    limits = [bytes_per_second, *(node.spec(NodeSpec).migration_bandwidth for node in found if node is not None)]
    least = min(filter(None, limits), default=0)
    return forecast(read_history(view), workload, *nodes, mode=mode, memory=memory, bytes_per_second=least)


def read_history(view: View) -> list[PastMigration]:
    """The newest first."""
    past = [migration for item in view.of_kind("migration").values() if (migration := read_past(item)) is not None]
    return sorted(past, key=lambda migration: migration.ended_at, reverse=True)


def read_past(item: Item) -> PastMigration | None:
    """None unless it has succeeded, and its duration is known."""
    spec, status = item.spec(MigrationSpec), item.status(MigrationStatus)
    actual = status.actual
    if status.phase != "Succeeded" or actual is None or not actual.duration_seconds:
        return None
    kind, name = read_workload(spec)
    return PastMigration(
        workload=object_key(kind, item.envelope.project, name),
        source=status.source,
        target=status.target,
        mode=spec.mode,
        way=status.plan.mode if status.plan is not None else "",
        duration_seconds=actual.duration_seconds,
        pause_ms=actual.pause_ms,
        bytes=actual.bytes,
        ended_at=status.ended_at or 0.0,
        limited=was_kept_slow(spec, status),
    )


def was_kept_slow(spec: MigrationSpec, status: MigrationStatus) -> bool:
    """Whether a limit slowed it down, not the path: its own, or a node's that it came near to."""
    limit = status.plan.limit_bytes_per_second if status.plan is not None else 0
    actual = status.actual
    if spec.bytes_per_second or not limit or actual is None or not actual.duration_seconds:
        return spec.bytes_per_second > 0
    return actual.bytes / actual.duration_seconds > limit * NEAR_LIMIT
