"""Steps for images: to have it on the node."""

from __future__ import annotations

from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.record import StepParts, StepRecord, Work
from weft.agent.workload.kind import Show
from weft.agent.workload.kinds import kind_of


async def _fetch(parts: StepParts, work: Work, show: Show) -> str:
    parts.runtimes.of(work.local)  # raises before anything is made for a workload that can't run here
    return await kind_of(work.local.spec).fetch_image(parts.node, work.local, work, show)


IMAGE_STEPS = (
    StepRecord(step=StepName.FETCH, perform=_fetch, gives_way=True),
    StepRecord(
        step=StepName.IMAGE,
        perform=_fetch,
        durable=True,
        makes=True,
        gives_way=True,
        stage="image",
        opens=True,
        ends_stage=True,
    ),
)
