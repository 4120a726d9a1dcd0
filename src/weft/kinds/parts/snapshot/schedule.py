"""Snapshots that a VM or a volume gets regularly: how often, and how many are kept. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_duration
from weft.objects.schema import field

LEAST_SECONDS = 60.0
MOST_SECONDS = 366 * 86400.0
MOST_KEPT = 24  # a disk stands on 30 layers at most, and people take snapshots, too
DEFAULT_KEPT = 7


class SnapshotSchedule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    every: Annotated[float, field("Time between two snapshots", quantity="period")]
    keep: Annotated[int, field("Number of them to keep", ge=1, le=MOST_KEPT)] = DEFAULT_KEPT
    memory: Annotated[bool, field("Keep the memory too, while the VM runs")] = False


def check_schedule(schedule: SnapshotSchedule | None) -> None:
    """Raises InvalidInput."""
    if schedule is not None and not LEAST_SECONDS <= schedule.every <= MOST_SECONDS:
        raise InvalidInput(
            f"spec.snapshots.every: {format_duration(schedule.every)} is out of range",
            field="spec.snapshots.every",
            hint="give 1m to 366d; leave snapshots out for none",
        )
