"""What a Migration's status tells of its course, of a guest or a disk: how far it is, what it came to, how far the
plan was off, how long it may take still. Pure."""

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


def record_progress(status: MigrationStatus, said: MigrationReport, now: float = 0.0) -> MigrationStatus:
    """The status with what the side that leads says by now."""
    status = replace(status)
    status.plan = said.plan or status.plan
    if said.message and not status.message:
        status.reason, status.message = said.reason, said.message
    if said.total_bytes or said.sent_bytes:
        status.progress = MigrationProgress(
            sent_bytes=said.sent_bytes,
            total_bytes=said.total_bytes,
            remaining_bytes=said.remaining_bytes,
            passes=said.passes,
            bytes_per_second=said.bytes_per_second,
            dirty_bytes_per_second=said.dirty_bytes_per_second,
        )
        status.samples = _add_sample(status.samples, said)
    if said.phase == "migrating":
        status.phase = "Migrating"
    elif said.phase in ("switching", "handedOver", "takenOver"):
        status.phase = "Switching"
    elif not status.ending:
        status.phase = "Preparing"
    if said.phase == "handedOver" and status.handed_over_at is None:
        status.handed_over_at = now
    return status


def _add_sample(samples: tuple[MigrationSample, ...], said: MigrationReport) -> tuple[MigrationSample, ...]:
    """With what is said now, if that is late enough after the last one; of too many every second one goes."""
    since = said.elapsed_ms - (samples[-1].elapsed_ms if samples else 0)
    if since <= said.elapsed_ms / MOST_SAMPLES:
        return samples
    sample = MigrationSample(
        elapsed_ms=said.elapsed_ms,
        sent_bytes=said.sent_bytes,
        remaining_bytes=said.remaining_bytes,
        passes=said.passes,
        bytes_per_second=said.bytes_per_second,
        dirty_bytes_per_second=said.dirty_bytes_per_second,
    )
    return (*(samples if len(samples) < MOST_SAMPLES else samples[::2]), sample)


def measure(status: MigrationStatus, *told: MigrationReport | None) -> MigrationActual:
    """What it came to, by what those who lead it have said so far."""
    said = [report for report in told if report is not None]
    former = status.actual or MigrationActual()
    elapsed = max((report.elapsed_ms for report in said), default=0) / 1000
    return MigrationActual(
        duration_seconds=max(former.duration_seconds, elapsed),
        pause_ms=max([former.pause_ms, *(report.pause_ms for report in said)]),
        bytes=max([former.bytes, *(report.sent_bytes for report in said)]),
        passes=max([former.passes, *(report.passes for report in said)]),
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
