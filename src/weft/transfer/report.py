"""A plan as a Migration tells it. Pure."""

from __future__ import annotations

from weft.kinds.allocation import PlannedMigration
from weft.transfer.plan import MigrationPlan


def tell_plan(
    plan: MigrationPlan, *, dirty_bytes_per_second: float = 0.0, path_bytes_per_second: float = 0.0, limit: int = 0
) -> PlannedMigration:
    """``plan``, and what it was made from: what the guest writes, what the path carries, what it is kept to."""
    settings = plan.settings
    return PlannedMigration(
        mode=settings.mode,
        reason=plan.reason,
        duration_seconds=plan.duration_seconds,
        pause_seconds=plan.pause_seconds,
        bytes=plan.bytes,
        passes=plan.passes,
        streams=settings.streams if settings.mode == "multifd-zstd" else 1,
        chunk_bytes=plan.chunk_bytes,
        ratio=plan.ratio,
        confidence=plan.confidence,
        duration_factor=plan.duration_factor,
        pause_factor=plan.pause_factor,
        bytes_factor=plan.bytes_factor,
        dirty_bytes_per_second=int(dirty_bytes_per_second),
        path_bytes_per_second=int(path_bytes_per_second),
        limit_bytes_per_second=limit,
    )
