"""fgd: the node where the expected fragmentation of GPUs grows least; of equal ones the fullest.

Fragmentation gradient descent by Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation
Gradient Descent", USENIX ATC 2023: for comparison. Its typical workloads are the most frequent of the outlook that make up
95 % of it; their memory doesn't count. Scores are whole numbers, as published: what differs by less is equal. Of several
devices on a node a share goes to the fullest that has capacity for it.
"""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np

from weft.contracts.policy import Column, GpuAsk, Occasion, Outlook, Reads, Request, Sort, Table, Values
from weft.scheduler.policies.residue import (
    TIE,
    Residue,
    Sorts,
    add_up,
    find_residue,
    find_rest,
    find_tightness,
    find_unfragmented,
    or_alike,
    read_sorts,
)
from weft.scheduler.table.devices import WHOLE

_TYPICAL = 0.95


class Fgd:
    name = "fgd"
    reads: Reads = "outlook"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        if not len(table.names):
            return [Column("unfragmented", 1.0, np.zeros(0))]
        outlook = or_alike(occasion.outlook, table, request)
        now = find_residue(table)
        rest = find_rest(table, request, now)
        growth = find_fragmented(table, rest, outlook) - find_fragmented(table, now, outlook)
        score = np.floor(100.0 / (1.0 + np.exp(growth / WHOLE)))
        return [Column("unfragmented", 1.0 - TIE, score), Column("fit", TIE, find_tightness(rest, outlook))]


def find_fragmented(table: Table, residue: Residue, outlook: Outlook) -> Values:
    """Idle thousandths of every node's GPUs that a typical workload can't be expected to use."""
    sorts, often = _read_typical(outlook, tuple(table.gpu_model.words))
    idle = residue.gpus.sum(axis=1)
    fragmented: Values = idle - add_up(find_unfragmented, residue, sorts, often)
    return fragmented


@functools.lru_cache(maxsize=8)
def _read_typical(outlook: Outlook, models: tuple[str, ...]) -> tuple[Sorts, Values]:
    counts: Counter[tuple[int, GpuAsk | None]] = Counter()
    for sort in outlook.sorts:
        counts[sort.amounts[0], sort.gpus] += sort.often  # type: ignore[assignment]
    typical: list[Sort] = []
    covered = 0.0
    for (cpu, gpus), often in counts.most_common():
        if covered >= _TYPICAL * counts.total():
            break
        typical.append(Sort((cpu, 0, 0), gpus, often))
        covered += often
    sorts = read_sorts(typical)
    # A workload without GPUs can use none.
    usable = np.array([0.0 if sort.gpus is None else sort.often / covered for sort in typical])
    return sorts, sorts.spread(usable, models)
