"""Steps for the guest itself: start, change, hold, stop, suspend, remove."""

from __future__ import annotations

from msgspec.structs import replace

from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.record import Moment, StepContext, StepParts, StepRecord, Work
from weft.agent.state.allocation import Checkpoint
from weft.agent.volume.origin import begin_from
from weft.agent.workload.fence import fence_disks
from weft.agent.workload.kind import Show
from weft.agent.workload.kinds import kind_of
from weft.contracts.driver.container import BEGUN_AFRESH
from weft.contracts.driver.runtime import CanAdjust, CanSuspend, GuestPlan
from weft.kinds.allocation import AllocationSpec
from weft.objects.errors import InvalidInput


def starts_again(checkpoint: Checkpoint, spec: AllocationSpec) -> bool:
    """Whether a start now is a restart after it ended by itself."""
    return checkpoint.run == "ended" and spec.restart_generation <= checkpoint.restart_generation


def _plan_guest(parts: StepParts, work: Work) -> object:
    work.in_namespace = parts.runtimes.in_namespace(work.local)
    return kind_of(work.local.spec).plan_guest(work.local, work)


async def _start(parts: StepParts, work: Work, show: Show) -> str:
    plan = _plan_guest(parts, work)
    if work.origin is not None and isinstance(plan, GuestPlan):
        plan = await begin_from(parts.node.pools, work.local, work, work.origin, plan)
    await fence_disks(parts.node.pools, work.local)
    async with parts.node.heavy:
        facts = await parts.runtimes.of(work.local).start(plan)
    return facts.message or "" if facts.reason == BEGUN_AFRESH else ""


def _before_start(checkpoint: Checkpoint, moment: Moment) -> Checkpoint:
    again = starts_again(checkpoint, moment.spec)
    return replace(
        checkpoint,
        run="starting",
        restart_generation=max(moment.spec.restart_generation, checkpoint.restart_generation),
        restarts=checkpoint.restarts + 1 if again else checkpoint.restarts,
        answered=checkpoint.answered and moment.resumes,
        ended="",
    )


async def _note_restart(turn: StepContext, before: Checkpoint) -> None:
    if starts_again(before, turn.state.local.spec):
        turn.put_event("Normal", "GuestRestarted", f"restart {turn.state.checkpoint.restarts}")


def _note_start(turn: StepContext, moment: Moment) -> None:
    turn.state.up_since = turn.clock.elapsed()
    if moment.detail:
        turn.put_event("Warning", "BegunAfresh", f"it couldn't resume from its saved state: {moment.detail}")


async def _adjust(parts: StepParts, work: Work, show: Show) -> None:
    runtime = parts.runtimes.of(work.local)
    if not isinstance(runtime, CanAdjust):
        raise InvalidInput(
            f"{work.local.what}: runtime {runtime.name} can't change a running workload", reason="unsupported"
        )
    await fence_disks(parts.node.pools, work.local, has=work.attached)
    await runtime.adjust(_plan_guest(parts, work))


async def _hold(parts: StepParts, work: Work, show: Show) -> None:
    if (driver := parts.runtimes.holding.get(parts.runtimes.find(work.local))) is not None:
        await driver.hold(work.local.id, True)


async def _let_go(parts: StepParts, work: Work, show: Show) -> None:
    await parts.network.open(work.local)
    if (driver := parts.runtimes.holding.get(parts.runtimes.find(work.local))) is not None:
        await driver.hold(work.local.id, False)


async def _stop(parts: StepParts, work: Work, show: Show) -> None:
    local = work.local
    await parts.runtimes.of(local).stop(local.id, grace_seconds=local.spec.grace_seconds)


async def _suspend(parts: StepParts, work: Work, show: Show) -> None:
    runtime = parts.runtimes.of(work.local)
    if not isinstance(runtime, CanSuspend):
        raise InvalidInput(f"{work.local.what}: runtime {runtime.name} can't suspend workloads", reason="unsupported")
    await runtime.suspend(work.local.id)


async def _remove(parts: StepParts, work: Work, show: Show) -> None:
    if (runtime := parts.runtimes.find(work.local)) is not None:  # else it was never here
        await parts.node.logs.drain(work.local)  # the driver's file of it goes, too
        await runtime.remove(work.local.id)


def take_down(checkpoint: Checkpoint, moment: Moment) -> Checkpoint:
    """This agent ends the guest."""
    return replace(checkpoint, run="down", ended="")


async def _forget(parts: StepParts, work: Work, show: Show) -> None:
    parts.node.container_images.drop(work.local.uid)
    parts.node.volume_keys.drop(work.local.uid)
    parts.node.secrets.drop(work.local.uid)  # the worker does the rest


async def _note_departure(turn: StepContext, before: Checkpoint) -> None:
    await turn.state.note_departure()


GUEST_STEPS = (
    StepRecord(
        step=StepName.START,
        perform=_start,
        before=_before_start,
        after=lambda checkpoint, moment: replace(checkpoint, run="up"),
        durable=True,
        makes=True,
        on_begin=_note_restart,
        on_end=_note_start,
        stage="boot",  # it ends with the guest's answer
    ),
    StepRecord(step=StepName.ADJUST, perform=_adjust),
    StepRecord(step=StepName.HOLD, perform=_hold),
    StepRecord(step=StepName.GO, perform=_let_go),
    StepRecord(step=StepName.STOP, perform=_stop, before=take_down),
    StepRecord(step=StepName.END, perform=_stop),
    StepRecord(step=StepName.SUSPEND, perform=_suspend),
    StepRecord(step=StepName.SAVE, perform=_suspend),
    StepRecord(step=StepName.REMOVE, perform=_remove, before=take_down),
    StepRecord(
        step=StepName.FORGET,
        perform=_forget,
        after=lambda checkpoint, moment: Checkpoint(
            restart_generation=checkpoint.restart_generation, restarts=checkpoint.restarts
        ),
        on_begin=_note_departure,
        on_end=lambda turn, moment: turn.release(),
    ),
)
