"""Changes that would make a workload fit: smaller requests, or changes to nodes that refuse it for one reason only. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.contracts.policy import RESOURCES, Request
from weft.kinds.recommendation import Advice
from weft.objects.quantity import format_bytes, format_cpu
from weft.scheduler.constraint.filters import FREE_CAPACITY
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import LEAST_CPU, LEAST_MEMORY

MOST = 5
MIB = 1024**2


def advise(engine: Engine, request: Request) -> list[Advice]:
    """Up to MOST changes, each enough by itself: smaller requests first, the largest of them first; then changes to nodes."""
    table = engine.snapshot
    refused = [(filter_, ~filter_.fits(table, request)) for filter_ in engine.filters]
    reasons = np.sum([flags for _, flags in refused], axis=0) if len(table) else np.zeros(0)
    smaller: list[Advice] = []
    others: list[Advice] = []
    for filter_, flags in refused:
        rows = [int(row) for row in np.flatnonzero(flags & (reasons == 1))]
        if filter_ is FREE_CAPACITY:
            smaller = _advise_smaller(engine, request, rows)
            continue
        for row in sorted(rows, key=lambda row: int(table.rank[row]))[:MOST]:
            node = table.names[row]
            reason, _ = filter_.explain(table, request, row)
            command = f"weft node uncordon {node}" if filter_.name in ("cordon", "quarantine") else ""
            others.append(Advice(node=node, text=f"{node} could take it except for this: {reason}", command=command))
    return [*smaller, *others][:MOST]


def _advise_smaller(engine: Engine, request: Request, rows: Sequence[int]) -> list[Advice]:
    """The largest part of the request that each node could give, the best first; one for nodes that could give the same."""
    table = engine.snapshot
    found: dict[tuple[int, ...], Advice] = {}
    for row in rows:
        free = table.capacity[:, row] - table.allocated[:, row]
        if free[0] < LEAST_CPU or free[1] < LEAST_MEMORY or free[2] < request.least_disk:
            continue
        spec: dict[str, object] = {}
        words: list[str] = []
        loss = 0.0
        for resource, wanted, left in zip(RESOURCES, request.amounts, free, strict=True):
            if wanted <= left:
                continue
            amount = _round(resource, int(left))
            loss += (1.0 - amount / wanted) / len(RESOURCES)
            spec[resource] = amount / 1000 if resource == "cpu" else amount
            shown = format_cpu(amount / 1000) if resource == "cpu" else format_bytes(amount)
            words.append(f"{resource} {shown}")
        key = tuple(int(min(wanted, left)) for wanted, left in zip(request.amounts, free, strict=True))
        if spec and key not in found:
            node = table.names[row]
            found[key] = Advice(
                node=node, text=f"{node} has capacity for {', '.join(words)}", changes=spec, loss=round(loss, 4)
            )
    return sorted(found.values(), key=lambda advice: (advice.loss, advice.node))[:MOST]


def _round(resource: str, amount: int) -> int:
    """An amount no larger, as people type it."""
    step = 100 if resource == "cpu" else MIB
    return amount // step * step
