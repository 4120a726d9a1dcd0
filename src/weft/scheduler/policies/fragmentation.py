"""fragmentation: the node where the workloads that are expected next lose least.

Of all GPUs each sort of workload in the outlook can use some; GPUs that few are left of for a sort are expensive. The score is the
loss of Σ often · log(usable), to the first order: every sort's loss on a node, by its frequency, over what it has left in
the whole fabric. So a node's cpu isn't spent where its GPUs will need it, whole nodes stay whole while there are workloads
that need one, and a model that some require is left to them. Workloads without GPUs are packed by shape (packing.py), first on
nodes without GPUs, if there are any; so are all while there is no outlook.
"""

from __future__ import annotations

import functools

import numpy as np

from weft.contracts.policy import Column, Occasion, Outlook, Reads, Request, Table, Values
from weft.scheduler.policies.packing import packing_terms
from weft.scheduler.policies.residue import (
    TIE,
    Sorts,
    add_up,
    find_residue,
    find_rest,
    find_tightness,
    find_usable,
    or_alike,
    read_sorts,
)
from weft.scheduler.table.devices import WHOLE

_LEAST_LEFT = 0.001
_LEVELS = 200  # scores that differ by less are equal; of equal ones the fullest node is best
_SMALL = 0.3  # small sorts weigh more, by this power of their GPUs; with 0 or much more, less is packed


class Fragmentation:
    name = "fragmentation"
    reads: Reads = "outlook"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        if not len(table.names):
            return [Column("kept", 1.0, np.zeros(0))]
        if request.gpus is None and not occasion.outlook.lasts(request):
            return packing_terms(table, request, occasion.outlook.bound)
        outlook = or_alike(occasion.outlook, table, request)
        now = find_residue(table)
        rest = find_rest(table, request, now)
        sorts, prices = _read_prices(outlook, tuple(table.gpu_model.words))
        before, after = (add_up(find_usable, some, sorts, prices) for some in (now, rest))
        loss = np.maximum(before - after, 0.0)
        kept = np.floor(2.0 * _LEVELS / (1.0 + np.exp(loss / WHOLE))) * (100.0 / _LEVELS)
        return [Column("kept", 1.0 - TIE, kept), Column("fit", TIE, find_tightness(rest, outlook))]


@functools.lru_cache(maxsize=8)
def _read_prices(outlook: Outlook, models: tuple[str, ...]) -> tuple[Sorts, Values]:
    """The sorts that want GPUs, and what the loss of a thousandth costs them by model; for all of them together 1."""
    dear = [sort for sort in outlook.sorts if sort.gpus is not None]
    sizes = np.array([sort.gpus.count * sort.gpus.share / WHOLE for sort in dear if sort.gpus is not None])
    prices = np.array([sort.often / max(sort.left, _LEAST_LEFT) for sort in dear]) * sizes**-_SMALL
    sorts = read_sorts(dear)
    return sorts, sorts.spread(prices / max(float(prices.sum()), 1e-12), models)
