"""The outlook: what is likely to be requested next, and how much capacity there would still be for it. Known from a list of
requests to come, or learnt from what runs already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from msgspec.structs import replace

from weft.contracts.policy import Amounts, GpuAsk, Outlook, Request, Sort, Table, Values
from weft.language.tree import Expression
from weft.scheduler.constraint.match import find_meeting, split
from weft.scheduler.policies.residue import find_residue, find_usable, read_sorts
from weft.scheduler.table.devices import WHOLE

STEP = 0.2  # of all capacity: the outlook is renewed when so much more or less of it is allocated
_FEW = 0.01  # of all capacity: too little to learn from
_MOST_SORTS = 512
_BLOCK = 256  # nodes
_MOST_BOUND = 8  # expressions whose nodes are kept free
_LEAST_BOUND = 0.05  # of the nodes that meet an expression: less demand keeps none
_MEMORY = 4096  # requests, after which the former ones count half

Ask = tuple[Amounts, GpuAsk | None]


class Demand:
    """Makes the outlook, and renews it when enough was allocated meanwhile. ``find_asks`` lists the requests; ``learns``: that
    list changes with time."""

    def __init__(self, find_asks: Callable[[], Iterable[Ask]], *, learns: bool = False) -> None:
        self._find_asks = find_asks
        self._learns = learns
        self._given: float | None = None
        self._asked: Counter[Expression | None] = Counter()
        self._requests = 0

    def note(self, request: Request) -> None:
        """Count the request's constraint, by its cpu."""
        self._asked[request.constraint] += max(1, request.amounts[0])
        self._requests += 1
        if self._requests >= _MEMORY:
            self._requests //= 2
            self._asked = Counter({asked: cpu // 2 for asked, cpu in self._asked.most_common(_MEMORY // 8)})

    def renew(self, table: Table) -> Outlook | None:
        """The outlook, or None while the last one still holds."""
        given = _find_given(table)
        if self._given is not None and abs(given - self._given) < STEP:
            if not self._learns or given < 2.0 * max(_FEW, self._given):
                return None
        self._given = given
        return replace(make_outlook(table, self._find_asks()), bound=_find_bound(table, self._asked))


def make_outlook(table: Table, asks: Iterable[Ask]) -> Outlook:
    """The outlook if further workloads are like ``asks``."""
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


def _find_bound(table: Table, asked_for: Counter[Expression | None]) -> tuple[tuple[Expression, float], ...]:
    """The share of nodes that each constraint would need if requests stay alike until all cpu is allocated."""
    total, cpu = sum(asked_for.values()), table.capacity[0] * (table.online & ~table.cordoned)
    asked: Counter[Expression] = Counter()
    for tree, amount in asked_for.items():
        facts = None if tree is None else split(tree)[0]
        if facts is not None:
            asked[facts] += amount
    bound = []
    for facts, amount in asked.most_common(_MOST_BOUND):
        there = float(cpu[find_meeting(facts, table)].sum())
        share = amount / total * float(cpu.sum()) / there if there else 0.0
        if share >= _LEAST_BOUND:
            bound.append((facts, min(1.0, share)))
    return tuple(sorted(bound, key=lambda one: -one[1]))


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
    """Allocated share of the GPUs, or of cpu where there are none."""
    gpus = table.gpu_free >= 0
    if gpus.any():
        return 1.0 - float(table.gpu_free[gpus].sum()) / (WHOLE * int(gpus.sum()))
    return float(table.allocated[0].sum() / max(1, int(table.capacity[0].sum())))
