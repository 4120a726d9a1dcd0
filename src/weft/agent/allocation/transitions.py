"""The checkpoint of an allocation before and after each step. Pure: checkpoint in, checkpoint out. The worker saves it."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from weft.agent.allocation.plan import BRING_UP
from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.record import Moment
from weft.agent.allocation.steps.registry import STEPS
from weft.agent.state.allocation import Checkpoint, MigrationState, StepFailure
from weft.agent.workload.kind import Prepared
from weft.kinds.allocation import AllocationSpec
from weft.kinds.fields.allocated_migration import is_between_clusters


def before_step(step: StepName, checkpoint: Checkpoint, moment: Moment) -> Checkpoint:
    """The checkpoint once ``step`` may have begun."""
    record = STEPS[step]
    if record.makes:
        checkpoint = replace(checkpoint, made=True)
    return record.before(checkpoint, moment)


def merge_changes(before: Checkpoint, begun: Checkpoint, now: Checkpoint) -> Checkpoint:
    """Merge a step's change, from ``before`` to ``begun``, with the changes to ``now`` that others made while it was saved: a
    migration's other end, a list without the allocation. If both changed a field, ``now`` is newer."""
    if now is before:
        return begun
    news = {
        name: getattr(now, name) for name in Checkpoint.__struct_fields__ if getattr(now, name) != getattr(before, name)
    }
    return replace(begun, **news)


def after_refusal(step: StepName, checkpoint: Checkpoint, spec: AllocationSpec, failure: StepFailure) -> Checkpoint:
    """The checkpoint after ``step`` failed for good: for a workload that runs once, that was its run."""
    if failure.retry_at is not None or step not in BRING_UP or not spec.once:
        return checkpoint
    return replace(
        checkpoint,
        run="ended",
        restart_generation=max(spec.restart_generation, checkpoint.restart_generation),
        ended=failure.reason,
        why=failure.message,
    )


def choose_migration(checkpoint: Checkpoint, spec: AllocationSpec) -> MigrationState | None:
    """The migration of its spec: this node's state of it, or the state with which it would begin."""
    allocated, migration, role = spec.migration, checkpoint.migration, spec.role
    if migration is not None or allocated is None or role not in ("source", "target"):
        return migration
    end: Literal["source", "target"] = "source" if role == "source" else "target"
    cold = allocated.mode == "cold"
    return MigrationState(
        allocated.key,
        end,
        allocated.peer_allocation,
        shared=allocated.shared,
        node=allocated.peer,
        cold=cold,
        between_clusters=is_between_clusters(allocated),
    )


def find_digest(checkpoint: Checkpoint, spec: AllocationSpec, *, runs: bool) -> str:
    """The digest of its container's image, or "" if the spec requires a new lookup; a container that ``runs`` keeps its image."""
    container = spec.container
    if spec.role == "target":
        return checkpoint.image or (spec.migration.image if spec.migration is not None else "")
    fresh = container is not None and container.pulls > checkpoint.pulls
    return "" if fresh and not (runs and spec.restart_generation <= checkpoint.restart_generation) else checkpoint.image


def after_pull(checkpoint: Checkpoint, spec: AllocationSpec, prepared: Prepared) -> Checkpoint:
    """The checkpoint once its image is here, as ``prepared`` has it."""
    container = spec.container
    if prepared.pulled is None or container is None:
        return checkpoint
    looked_up = spec.role == "target" or not prepared.digest  # one that migrates here keeps what it had
    pulls = container.pulls if looked_up else checkpoint.pulls
    return replace(checkpoint, image=prepared.pulled.digest, pulls=pulls)
