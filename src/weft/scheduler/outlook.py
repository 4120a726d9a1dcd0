"""What is likely to be asked for next, and how much of it there would still be room for: what policies that look ahead
go by. Known from those who ask, or from what runs already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from weft.contracts.policy import Amounts, Codes, GpuAsk, Outlook, Sort, Table, Values
from weft.scheduler.policies.residue import Residue, find_residue, find_usable, read_sorts

STEP = 0.2  # of all that may be given away: after how much of it the outlook is another one
_MOST_SORTS = 512


class Demand:
    """Counts what is asked for, and gives the outlook anew when so much was given away meanwhile that it matters."""

    def __init__(self, asks: Iterable[tuple[Amounts, GpuAsk | None]]) -> None:
        self._counts = Counter(asks)
        self._given: float | None = None

    def renew(self, table: Table) -> Outlook | None:
        """The outlook, or None while the last one still holds."""
        given = _find_given(table)
        if self._given is not None and abs(given - self._given) < STEP:
            return None
        self._given = given
        return look_ahead(table, self._counts)


def look_ahead(table: Table, counts: Counter[tuple[Amounts, GpuAsk | None]]) -> Outlook:
    """The outlook if workloads keep coming as they were counted."""
    if not counts or not len(table.names):
        return Outlook()
    common = counts.most_common(_MOST_SORTS)
    total = sum(count for _, count in common)
    plain = [Sort(amounts, gpus, count / total) for (amounts, gpus), count in common]
    sorts = read_sorts(plain)
    now = find_residue(table)
    empty = Residue(
        table.capacity[0].astype(np.float64),
        table.capacity[1].astype(np.float64),
        np.where(table.gpu_free >= 0, 1000, 0).astype(np.int32),
        now.models,
    )
    bare = (sorts.size == 0.0)[sorts.column]
    words = table.gpu_model.words
    usable = _sum_by_model(find_usable(now, sorts), now.models, len(words))
    allowed = sorts.allowed(words)
    left = (allowed * usable[:, sorts.column].T).sum(axis=1)
    most = np.full(len(plain), 1000.0 * max(1, int((table.gpu_free >= 0).sum())))
    if bare.any():
        most[bare] = np.maximum(find_usable(empty, sorts).sum(axis=0)[sorts.column][bare], 1.0)
    cpu, memory, disk = (max(1, int(amount)) for amount in table.capacity.max(axis=1))
    return Outlook(
        tuple(
            Sort(sort.amounts, sort.gpus, sort.often, min(1.0, float(part)))
            for sort, part in zip(plain, left / most, strict=True)
        ),
        (cpu, memory, disk, max(1, int(empty.gpus.sum(axis=1).max()))),
        lasts=bool((sorts.size > 0.0).any() and empty.gpus.any()),
    )


def _sum_by_model(usable: Values, codes: Codes, words: int) -> Values:
    """Codes of models (the last: none) × columns."""
    sums = np.zeros((words + 1, usable.shape[1]))
    np.add.at(sums, codes, usable)
    return sums


def _find_given(table: Table) -> float:
    """Which share of GPUs is given away, or of cpu where there are none."""
    gpus = table.gpu_free >= 0
    if gpus.any():
        return 1.0 - float(table.gpu_free[gpus].sum()) / (1000.0 * int(gpus.sum()))
    return float(table.allocated[0].sum() / max(1, int(table.capacity[0].sum())))
