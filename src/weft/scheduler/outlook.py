"""What is likely to be asked for next, and how much of it there would still be room for: what policies that look ahead
go by. Known from a list of what will come, or learnt from what runs already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from weft.contracts.policy import Amounts, GpuAsk, Outlook, Sort, Table, Values
from weft.scheduler.policies.residue import find_residue, find_usable, read_sorts
from weft.scheduler.table.devices import WHOLE

STEP = 0.2  # of all there is: after how much of it given away or back the outlook is another one
_FEW = 0.01  # of all there is: too little to learn from
_MOST_SORTS = 512
_BLOCK = 256  # nodes

Ask = tuple[Amounts, GpuAsk | None]


class Demand:
    """Gives the outlook, and gives it anew when so much was given away meanwhile that it matters. ``find_asks`` says what
    is asked for, one entry each; ``learns``: it says something else as time goes on."""

    def __init__(self, find_asks: Callable[[], Iterable[Ask]], *, learns: bool = False) -> None:
        self._find_asks = find_asks
        self._learns = learns
        self._given: float | None = None

    def renew(self, table: Table) -> Outlook | None:
        """The outlook, or None while the last one still holds."""
        given = _find_given(table)
        if self._given is not None and abs(given - self._given) < STEP:
            if not self._learns or given < 2.0 * max(_FEW, self._given):
                return None
        self._given = given
        return look_ahead(table, self._find_asks())


def look_ahead(table: Table, asks: Iterable[Ask]) -> Outlook:
    """The outlook if workloads keep coming as in ``asks``."""
    counts = Counter(asks).most_common(_MOST_SORTS)
    if not counts or not len(table.names):
        return Outlook()
    total = sum(count for _, count in counts)
    plain = [Sort(amounts, gpus, count / total) for (amounts, gpus), count in counts]
    cpu, memory, disk = (max(1, int(amount)) for amount in table.capacity.max(axis=1))
    devices = (table.gpu_free >= 0).sum(axis=1)
    return Outlook(
        tuple(
            sort if sort.gpus is None else Sort(sort.amounts, sort.gpus, sort.often, left)
            for sort, left in zip(plain, _find_left(table, plain).tolist(), strict=True)
        ),
        (cpu, memory, disk, WHOLE * max(1, int(devices.max()))),
        gpus_wanted=bool(devices.any()) and any(sort.gpus is not None for sort in plain),
        gpus_everywhere=bool(devices.all()),
    )


def _find_left(table: Table, plain: list[Sort]) -> Values:
    """How much of all GPUs each could still use (0–1)."""
    sorts = read_sorts(plain)
    words = table.gpu_model.words
    now = find_residue(table)
    open_ = table.online & ~table.cordoned
    usable = np.zeros((len(words) + 1, len(sorts.size)))
    for start in range(0, len(table.names), _BLOCK):
        part = now.part(start, start + _BLOCK)
        found = find_usable(part, sorts) * open_[start : start + _BLOCK, None]
        np.add.at(usable, part.models, found)  # no model is -1: the last
    left = (sorts.allowed(words) * usable[:, sorts.column].T).sum(axis=1)
    most = WHOLE * max(1, int((table.gpu_free >= 0).sum()))
    share: Values = np.minimum(left / most, 1.0)
    return share


def _find_given(table: Table) -> float:
    """Which share of GPUs is given away, or of cpu where there are none."""
    gpus = table.gpu_free >= 0
    if gpus.any():
        return 1.0 - float(table.gpu_free[gpus].sum()) / (WHOLE * int(gpus.sum()))
    return float(table.allocated[0].sum() / max(1, int(table.capacity[0].sum())))
