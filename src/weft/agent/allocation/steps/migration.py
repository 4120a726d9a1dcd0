"""Steps for migrations, from either end, and for the relocation of a disk."""

from __future__ import annotations

from msgspec.structs import replace

from weft.agent.allocation.steps.guest import take_down
from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.record import Moment, StepContext, StepParts, StepRecord, Work
from weft.agent.state.allocation import Checkpoint
from weft.agent.workload.kind import Show
from weft.kinds.fields.lease import LEASE_ENDED

RUNS = "it may have run here"  # of a guest that can't be given up


async def _open(parts: StepParts, work: Work, show: Show) -> None:
    await parts.migrations.open(work.state, work.local, work.begun_migration, work)


def _before_open(checkpoint: Checkpoint, moment: Moment) -> Checkpoint:
    spec = moment.spec
    generation = max(spec.restart_generation, checkpoint.restart_generation)
    checkpoint = replace(checkpoint, migration=moment.migration, restart_generation=generation)
    rests = spec.migration.rests if spec.migration is not None else ""
    if rests == LEASE_ENDED:  # it was ended, and its lease says that it stays so
        checkpoint = replace(checkpoint, run="down", ended="")
    elif rests:
        checkpoint = replace(checkpoint, run="ended", ended=rests)
    return checkpoint


async def _send(parts: StepParts, work: Work, show: Show) -> None:
    await parts.migrations.send(work.state, work.local, work.begun_migration)


async def _give_up(parts: StepParts, work: Work, show: Show) -> str:
    return "" if work.migration is None or await parts.migrations.give_up(work.local, work.migration) else RUNS


async def _leave(parts: StepParts, work: Work, show: Show) -> None:
    await parts.migrations.leave(work.local, work.begun_migration)


def _part(checkpoint: Checkpoint, moment: Moment) -> Checkpoint:
    """This end of the migration is over, or it is certain that the guest runs here."""
    migration, runs = moment.migration, moment.detail == RUNS
    if migration is None:
        return checkpoint
    migration = replace(migration, over=not runs, taken=migration.taken or runs or moment.taken_over)
    return replace(checkpoint, migration=migration, run="up" if runs else checkpoint.run)


async def _cancel(parts: StepParts, work: Work, show: Show) -> None:
    await parts.migrations.cancel(work.local, work.begun_migration)


async def _settle(parts: StepParts, work: Work, show: Show) -> None:
    await parts.migrations.settle(work.local, work.begun_migration)


def _after_settle(checkpoint: Checkpoint, moment: Moment) -> Checkpoint:
    if checkpoint.migration is None:
        return checkpoint
    return replace(checkpoint, migration=None, arrived_by=checkpoint.migration.key)


def _relate(turn: StepContext, moment: Moment) -> None:
    """An orphan's guest is known to be here, or not, from now on."""
    if turn.state.checkpoint.orphan:
        turn.relate()


def _relate_if_migrating(turn: StepContext, moment: Moment) -> None:
    if moment.migration is not None:
        _relate(turn, moment)


async def _relocate(parts: StepParts, work: Work, show: Show) -> None:
    assert work.relocation is not None
    await parts.migrations.relocate(work.state, work.local, work.relocation, work)


MIGRATION_STEPS = (
    StepRecord(step=StepName.OPEN, perform=_open, before=_before_open, durable=True),
    StepRecord(
        step=StepName.SEND,
        perform=_send,
        before=lambda checkpoint, moment: replace(checkpoint, migration=moment.migration),
        durable=True,
    ),
    StepRecord(step=StepName.GIVE_UP, perform=_give_up, after=_part, on_end=_relate_if_migrating),
    StepRecord(step=StepName.LEAVE, perform=_leave, before=take_down, after=_part, on_end=_relate_if_migrating),
    StepRecord(
        step=StepName.CANCEL,
        perform=_cancel,
        after=lambda checkpoint, moment: replace(checkpoint, migration=None),
        on_end=_relate,
    ),
    StepRecord(step=StepName.SETTLE, perform=_settle, after=_after_settle),
    StepRecord(
        step=StepName.RELOCATE,
        perform=_relocate,
        before=lambda checkpoint, moment: replace(checkpoint, relocation=moment.relocation),
        durable=True,
    ),
)
