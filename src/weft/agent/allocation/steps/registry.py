"""All steps. One more is a name in names.py, its record in the file of its subject, and its place in the plan."""

from __future__ import annotations

from weft.agent.allocation.steps.disks import DISK_STEPS
from weft.agent.allocation.steps.guest import GUEST_STEPS
from weft.agent.allocation.steps.image import IMAGE_STEPS
from weft.agent.allocation.steps.migration import MIGRATION_STEPS
from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.ports import PORT_STEPS
from weft.agent.allocation.steps.record import StepRecord
from weft.agent.allocation.steps.restore import RESTORE_STEPS
from weft.agent.allocation.steps.snapshot import SNAPSHOT_STEPS

STEPS: dict[StepName, StepRecord] = {
    record.step: record
    for record in (
        *IMAGE_STEPS,
        *DISK_STEPS,
        *PORT_STEPS,
        *GUEST_STEPS,
        *MIGRATION_STEPS,
        *SNAPSHOT_STEPS,
        *RESTORE_STEPS,
    )
}
