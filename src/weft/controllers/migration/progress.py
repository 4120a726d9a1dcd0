"""The course of a Migration in its status, of a guest or a disk: progress, actual cost, the plan's error, time left. Pure."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from weft.kinds.fields.allocated_migration import MigrationReport
from weft.kinds.migration import (
    MOST_SAMPLES,
    MigrationActual,
    MigrationError,
    MigrationProgress,
    MigrationSample,
    MigrationSpec,
    MigrationStatus,
)


def record_progress(status: MigrationStatus, report: MigrationReport, now: float = 0.0) -> MigrationStatus:
    """The status with the newest report of the source, or of a disk's node."""
    status = replace(status)
    status.plan = report.plan or status.plan
    if report.message and not status.message:
        status.reason, status.message = report.reason, report.message
    if report.total_bytes or report.sent_bytes:
        status.progress = MigrationProgress(
            sent_bytes=report.sent_bytes,
            total_bytes=report.total_bytes,
            remaining_bytes=report.remaining_bytes,
            passes=report.passes,
            bytes_per_second=report.bytes_per_second,
            dirty_bytes_per_second=report.dirty_bytes_per_second,
        )
        status.samples = _add_sample(status.samples, report)
    if report.phase == "migrating":
        status.phase = "Migrating"
    elif report.phase in ("switching", "handedOver", "takenOver"):
        status.phase = "Switching"
    elif not status.ending:
        status.phase = "Preparing"
    if report.phase == "handedOver" and status.handed_over_at is None:
        status.handed_over_at = now
    return status


def _add_sample(samples: tuple[MigrationSample, ...], report: MigrationReport) -> tuple[MigrationSample, ...]:
    """``samples`` with the report, if it is late enough after the last one; of too many every second one goes."""
    since = report.elapsed_ms - (samples[-1].elapsed_ms if samples else 0)
    if since <= report.elapsed_ms / MOST_SAMPLES:
        return samples
    sample = MigrationSample(
        elapsed_ms=report.elapsed_ms,
        sent_bytes=report.sent_bytes,
        remaining_bytes=report.remaining_bytes,
        passes=report.passes,
        bytes_per_second=report.bytes_per_second,
        dirty_bytes_per_second=report.dirty_bytes_per_second,
    )
    return (*(samples if len(samples) < MOST_SAMPLES else samples[::2]), sample)


def measure(status: MigrationStatus, *reports: MigrationReport | None) -> MigrationActual:
    """Cost of the migration so far, by these reports and those before."""
    newest = [report for report in reports if report is not None]
    former = status.actual or MigrationActual()
    elapsed = max((report.elapsed_ms for report in newest), default=0) / 1000
    return MigrationActual(
        duration_seconds=max(former.duration_seconds, elapsed),
        pause_ms=max([former.pause_ms, *(report.pause_ms for report in newest)]),
        bytes=max([former.bytes, *(report.sent_bytes for report in newest)]),
        passes=max([former.passes, *(report.passes for report in newest)]),
    )


def compare(status: MigrationStatus) -> MigrationError | None:
    """How far the plan was off."""
    plan, actual = status.plan, status.actual
    if plan is None or actual is None or not plan.duration_seconds:
        return None
    return MigrationError(
        duration=_percent(plan.duration_seconds, actual.duration_seconds),
        pause=_percent(plan.pause_seconds * 1000, actual.pause_ms),
        bytes=_percent(plan.bytes, actual.bytes),
    )


def _percent(planned: float, actual: float) -> float:
    return round(100 * abs(planned - actual) / actual, 1) if actual else 0.0


def time_left(spec: MigrationSpec, status: MigrationStatus, now: float) -> float:
    return spec.timeout_seconds - (now - (status.started_at if status.started_at is not None else now))


def end_migration(
    status: MigrationStatus, phase: Literal["Succeeded", "Failed", "Cancelled"], reason: str, message: str, now: float
) -> MigrationStatus:
    return replace(status, phase=phase, ending="", reason=reason, message=message, ended_at=now)
