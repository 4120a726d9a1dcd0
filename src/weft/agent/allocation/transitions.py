"""The checkpoint of an allocation before and after each step. Pure: checkpoint in, checkpoint out. The worker saves it."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from weft.agent.allocation.executor import RUNS
from weft.agent.allocation.plan import BRING_UP, Step
from weft.agent.state.allocation import Checkpoint, MigrationState, StepFailure
from weft.agent.workload.kind import Prepared
from weft.kinds.allocation import AllocationSpec


def before_step(
    step: Step, checkpoint: Checkpoint, spec: AllocationSpec, migration: MigrationState | None, *, resumes: bool
) -> Checkpoint:
    """The checkpoint once ``step`` may have begun. ``migration``: its spec's; ``resumes``: the guest's memory is saved."""
    if step in BRING_UP:
        checkpoint = replace(checkpoint, made=True)
    if step is Step.START:
        again = starts_again(checkpoint, spec)
        checkpoint = replace(
            checkpoint,
            run="starting",
            restart_generation=max(spec.restart_generation, checkpoint.restart_generation),
            restarts=checkpoint.restarts + 1 if again else checkpoint.restarts,
            answered=checkpoint.answered and resumes,
            ended="",
        )
    elif step in (Step.STOP, Step.REMOVE, Step.LEAVE):
        checkpoint = replace(checkpoint, run="down", ended="")
    if step in (Step.OPEN, Step.SEND):
        checkpoint = replace(checkpoint, migration=migration)
    if step is Step.OPEN:
        checkpoint = replace(checkpoint, restart_generation=max(spec.restart_generation, checkpoint.restart_generation))
        if spec.migration is not None and spec.migration.rests:
            checkpoint = replace(checkpoint, run="ended", ended=spec.migration.rests)
    return checkpoint


def merge_changes(before: Checkpoint, begun: Checkpoint, now: Checkpoint) -> Checkpoint:
    """Merge a step's change, from ``before`` to ``begun``, with the changes to ``now`` that others made while it was saved: a
    migration's other end, a list without the allocation. If both changed a field, ``now`` is newer."""
    if now is before:
        return begun
    news = {
        name: getattr(now, name) for name in Checkpoint.__struct_fields__ if getattr(now, name) != getattr(before, name)
    }
    return replace(begun, **news)


def after_refusal(step: Step, checkpoint: Checkpoint, spec: AllocationSpec, failure: StepFailure) -> Checkpoint:
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


def starts_again(checkpoint: Checkpoint, spec: AllocationSpec) -> bool:
    """Whether a start now is a restart after it ended by itself."""
    return checkpoint.run == "ended" and spec.restart_generation <= checkpoint.restart_generation


def after_step(
    step: Step, checkpoint: Checkpoint, detail: str, migration: MigrationState | None, *, taken_over: bool
) -> Checkpoint:
    """The checkpoint after ``step`` returned ``detail``. ``taken_over``: the server has confirmed that the migration's target runs
    the guest."""
    if step is Step.START:
        return replace(checkpoint, run="up")
    if step is Step.TIDY:
        return replace(checkpoint, leftover=[])
    if step in (Step.GIVE_UP, Step.LEAVE) and migration is not None:
        runs = detail == RUNS
        migration = replace(migration, over=not runs, taken=migration.taken or runs or taken_over)
        return replace(checkpoint, migration=migration, run="up" if runs else checkpoint.run)
    if step is Step.CANCEL:
        return replace(checkpoint, migration=None)
    if step is Step.SETTLE and checkpoint.migration is not None:
        return replace(checkpoint, migration=None, arrived_by=checkpoint.migration.key)
    if step is Step.FORGET:
        return Checkpoint(restart_generation=checkpoint.restart_generation, restarts=checkpoint.restarts)
    return checkpoint


def choose_migration(checkpoint: Checkpoint, spec: AllocationSpec) -> MigrationState | None:
    """The migration of its spec: this node's state of it, or the state with which it would begin."""
    allocated, migration, role = spec.migration, checkpoint.migration, spec.role
    if migration is not None or allocated is None or role not in ("source", "target"):
        return migration
    end: Literal["source", "target"] = "source" if role == "source" else "target"
    cold = allocated.mode == "cold"
    return MigrationState(
        allocated.key, end, allocated.peer_allocation, shared=allocated.shared, node=allocated.peer, cold=cold
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
