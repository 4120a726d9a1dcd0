"""What an agent remembers of an allocation before and after each step, and what that says of where its guest is. Pure: memory in,
memory out. The worker writes it down."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from weft.agent.allocation.executor import RUNS
from weft.agent.allocation.plan import BRING_UP, Step
from weft.agent.state.allocation import AllocationState, MigrationState, StepFailure
from weft.agent.workload.vm import Prepared
from weft.kinds.allocation import AllocatedNic, AllocationSpec
from weft.kinds.parts.orphan import GuestLocation


def before_step(
    step: Step, memory: AllocationState, spec: AllocationSpec, part: MigrationState | None, *, resumes: bool
) -> AllocationState:
    """What is so as soon as ``step`` may have begun. ``part``: what this node has in the allocation's move; ``resumes``:
    the guest's memory is saved."""
    if step in BRING_UP:
        memory = replace(memory, made=True)
    if step is Step.START:
        again = starts_again(memory, spec)
        memory = replace(
            memory,
            run="starting",
            restart_generation=max(spec.restart_generation, memory.restart_generation),
            restarts=memory.restarts + 1 if again else memory.restarts,
            answered=memory.answered and resumes,
            ended="",
        )
    elif step in (Step.STOP, Step.REMOVE, Step.LEAVE):
        memory = replace(memory, run="down", ended="")
    if step in (Step.OPEN, Step.SEND):
        memory = replace(memory, part=part)
    if step is Step.OPEN:
        memory = replace(memory, restart_generation=max(spec.restart_generation, memory.restart_generation))
        if spec.move is not None and spec.move.rests:
            memory = replace(memory, run="ended", ended=spec.move.rests)
    return memory


def merge_heard(before: AllocationState, begun: AllocationState, heard: AllocationState) -> AllocationState:
    """``begun`` is what a step makes of ``before``, ``heard`` what others made of that while it was written down: a move's other
    side, a list that doesn't hold the allocation. Both are so; where both speak of one thing, what was heard is newer."""
    if heard is before:
        return begun
    news = {
        name: getattr(heard, name)
        for name in AllocationState.__struct_fields__
        if getattr(heard, name) != getattr(before, name)
    }
    return replace(begun, **news)


def after_refusal(step: Step, memory: AllocationState, spec: AllocationSpec, trouble: StepFailure) -> AllocationState:
    """What is so once ``step`` has failed for a reason that no other try mends: what runs once has had its run by that."""
    if trouble.retry_at is not None or step not in BRING_UP or not spec.once:
        return memory
    return replace(
        memory,
        run="ended",
        restart_generation=max(spec.restart_generation, memory.restart_generation),
        ended=trouble.reason,
        why=trouble.message,
    )


def starts_again(memory: AllocationState, spec: AllocationSpec) -> bool:
    """Whether a start now is one after an end that nobody asked for."""
    return memory.run == "ended" and spec.restart_generation <= memory.restart_generation


def after_step(
    step: Step, memory: AllocationState, detail: str, part: MigrationState | None, *, taken_over: bool
) -> AllocationState:
    """What is so once ``step`` is done; ``detail`` is its word on itself. ``taken_over``: the word is here that the target of the
    allocation's move runs its guest."""
    if step is Step.START:
        return replace(memory, run="up")
    if step is Step.TIDY:
        return replace(memory, leftover=[])
    if step in (Step.GIVE_UP, Step.LEAVE) and part is not None:
        runs = detail == RUNS
        part = replace(part, over=not runs, taken=part.taken or runs or taken_over)
        return replace(memory, part=part, run="up" if runs else memory.run)
    if step is Step.CANCEL:
        return replace(memory, part=None)
    if step is Step.SETTLE and memory.part is not None:
        return replace(memory, part=None, took=memory.part.key)
    if step is Step.FORGET:
        return AllocationState(restart_generation=memory.restart_generation, restarts=memory.restarts)
    return memory


def choose_part(memory: AllocationState, spec: AllocationSpec) -> MigrationState | None:
    """What this node has in the allocation's move, or would have if it began."""
    move, part, role = spec.move, memory.part, spec.role
    if part is not None or move is None or role not in ("source", "target"):
        return part
    side: Literal["source", "target"] = "source" if role == "source" else "target"
    cold = move.mode == "cold"
    return MigrationState(move.key, side, move.peer_allocation, shared=move.shared, node=move.peer, cold=cold)


def find_digest(memory: AllocationState, spec: AllocationSpec, *, runs: bool) -> str:
    """Of its container's image, unless that is to be looked up again; what ``runs`` has the one it has."""
    container = spec.container
    if spec.role == "target":
        return memory.image or (spec.move.image if spec.move is not None else "")
    fresh = container is not None and container.pulls > memory.pulls
    return "" if fresh and not (runs and spec.restart_generation <= memory.restart_generation) else memory.image


def after_pull(memory: AllocationState, spec: AllocationSpec, prepared: Prepared) -> AllocationState:
    """What is so once its image is here, as the steps find it ``prepared``."""
    if prepared.pulled is None or spec.container is None:
        return memory
    looked_up = spec.role == "target" or not prepared.digest  # one that comes has what it had where it was
    pulls = spec.container.pulls if looked_up else memory.pulls
    return replace(memory, image=prepared.pulled.digest, pulls=pulls)


def find_leftover(left: list[AllocatedNic], old: AllocationSpec, new: AllocationSpec) -> list[AllocatedNic]:
    """NICs that were asked for once and are not any more."""
    kept = {nic.uid for nic in new.nics}
    return list({nic.uid: nic for nic in [*left, *old.nics] if nic.uid not in kept}.values())


def locate_guest(memory: AllocationState, spec: AllocationSpec) -> GuestLocation:
    """Where its guest is, for all that this node knows."""
    part = memory.part
    if part is None:
        return "open" if spec.role == "target" else "here"
    if part.side == "target" and part.taken:
        return "left" if part.over else "here"
    if part.side == "target":
        return "abandoned" if part.over else "open"
    return "left" if part.taken else "open"
