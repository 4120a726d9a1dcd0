"""Steps for NICs: their ports and networks on this node."""

from __future__ import annotations

from msgspec.structs import replace

from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.record import StepContext, StepParts, StepRecord, Work
from weft.agent.state.allocation import Checkpoint
from weft.agent.workload.kind import Show


async def _plug(parts: StepParts, work: Work, show: Show) -> str:
    local = work.local
    plug = parts.network.prepare_migration if local.spec.role == "target" else parts.network.plug
    work.links = await plug(local) if local.spec.nics else []
    return "" if local.spec.nics else "no network"


async def _tidy(parts: StepParts, work: Work, show: Show) -> None:
    await parts.network.unplug(work.local, work.leftover)


async def _unplug(parts: StepParts, work: Work, show: Show) -> None:
    await parts.network.unplug(work.local)


async def _note_plugged(turn: StepContext, before: Checkpoint) -> None:
    turn.state.unplugged = False


async def _note_unplugged(turn: StepContext, before: Checkpoint) -> None:
    turn.state.unplugged = True


PORT_STEPS = (
    StepRecord(
        step=StepName.NETWORK,
        perform=_plug,
        durable=True,
        makes=True,
        on_begin=_note_plugged,
        stage="network",
        ends_stage=True,
    ),
    StepRecord(step=StepName.TIDY, perform=_tidy, after=lambda checkpoint, moment: replace(checkpoint, leftover=[])),
    StepRecord(step=StepName.UNPLUG, perform=_unplug, on_begin=_note_unplugged),
)
