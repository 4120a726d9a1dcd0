"""Why a reservation is refused, for people: what its slots lack, and what would fit. Pure."""

from __future__ import annotations

import math

from weft.contracts.policy import Request
from weft.kinds.reservation import ReservationSpec
from weft.objects.quantity import format_bytes, format_cores, format_duration, format_time
from weft.scheduler.allocation.lease import Conflict, describe_amounts, describe_most_free, format_earliest
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import describe_deleted_node


def describe_refusal(
    engine: Engine,
    spec: ReservationSpec,
    request: Request,
    count: int,
    fitting: int,
    conflict: Conflict,
    span: tuple[float, float],
    later: float,
) -> str:
    """``fitting`` of ``count`` slots fit; ``span``: start and end, ``later``: from when all of them would (seconds since 1970)."""
    size = f"{format_cores(spec.cpu)} and {format_bytes(spec.memory)}" + (f" and {spec.gpus} GPUs" if spec.gpus else "")
    when = f"from {format_time(span[0])} to {format_time(span[1])}"
    if deleted := describe_deleted_node(engine.snapshot, request):
        return deleted
    text = f"only {fitting} of {count} slots of {size} fit" if fitting else f"no node has {describe_amounts(request)}"
    text = f"{text} {when}"
    if later < math.inf:
        return f"{text}; earliest: {format_earliest(later)}"
    if conflict.shorter >= 60.0:
        return f"{text}; at most {format_duration(conflict.shorter)} at that time"
    return text if fitting else text + describe_most_free(engine, request, span[0], span[1] - span[0])
