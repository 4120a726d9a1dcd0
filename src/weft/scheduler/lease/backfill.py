"""Which queued leases start now: one pure pass over a queue for one divisible capacity.

EASY backfilling (Lifka, "The ANL/IBM SP Scheduling System", JSSPP 1995): the first of the queue that doesn't fit holds a
reservation at the earliest moment when what runs has to be over, and others may start before it if they leave that alone. The
models differ in the order of the queue, in the order in which gaps are filled, and in how long a lease is believed to run:

- ``easy``: by arrival, both; as long as requested.
- ``easy-sjbf``: gaps by shortest request first.
- ``easy-sjbf-clairvoyant``: the same with the true durations, which no scheduler knows: a bound for comparison.
- ``weft``: by expected slowdown, (waited + predicted) / predicted, as in the Maui scheduler (Jackson, Snell and Clement, JSSPP
  2001), as if all had waited ``HEAD_START_SECONDS`` longer, which favours the short ones among new ones, and a little less for
  much of the capacity; gaps by shortest prediction. What has waited longer than ``GUARD_SECONDS`` comes first, by arrival, and
  its reservation is kept strictly: behind it only requests count. So nothing waits for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

GUARD_SECONDS = 96 * 3600.0
HEAD_START_SECONDS = 2 * 3600.0
_AMOUNT_EXPONENT = 0.25
SHORTEST_SECONDS = 10.0  # what runs shorter counts as this long in slowdowns


class Queued(msgspec.Struct, eq=False):
    """A lease that waits."""

    id: str
    owner: str
    arrival: float  # seconds on the clock of the caller
    amount: int  # of the capacity
    requested: float  # seconds; it is ended after these
    predicted: float  # seconds


class Model(msgspec.Struct, frozen=True):
    """How the queue is ordered, and what a gap must hold."""

    urgency: (
        Callable[[Queued, float], float] | None
    )  # the queue's order, lowest first; ties, and all without it, by arrival
    gap_order: Callable[[Queued], float]  # lowest first; ties as in the queue
    guard_seconds: float | None = None  # after that long a wait arrival alone counts


def _urgency(lease: Queued, now: float) -> float:
    waited = now - lease.arrival + HEAD_START_SECONDS
    return -(waited + lease.predicted) / (
        max(lease.predicted, SHORTEST_SECONDS) * math.pow(lease.amount, _AMOUNT_EXPONENT)
    )


def _predicted(lease: Queued) -> float:
    return lease.predicted


_BY_SHORTEST = Model(None, _predicted)
MODELS = {
    "easy": Model(None, lambda lease: 0),
    "easy-sjbf": _BY_SHORTEST,
    "easy-sjbf-clairvoyant": _BY_SHORTEST,
    "weft": Model(_urgency, _predicted, GUARD_SECONDS),
}


def choose(
    queue: Sequence[Queued], running: Sequence[tuple[float, int]], free: int, now: float, model: Model
) -> list[Queued]:
    """Those of ``queue`` (by arrival) that start at ``now``, in order. ``running``: when each running lease has to be over, and its
    amount."""
    ordered = _order(queue, now, model)
    starts, taken = [], 0
    while taken < len(ordered) and ordered[taken].amount <= free:
        free -= ordered[taken].amount
        starts.append(ordered[taken])
        taken += 1
    if taken == len(ordered) or free == 0:
        return starts
    head, rest = ordered[taken], ordered[taken + 1 :]
    shadow, extra = _reserve(
        head.amount, [*running, *((now + lease.requested, lease.amount) for lease in starts)], free
    )
    guarded = model.guard_seconds is not None and now - head.arrival > model.guard_seconds
    for lease in sorted(rest, key=model.gap_order):
        if lease.amount > free:
            continue
        if now + (lease.requested if guarded else lease.predicted) > shadow:
            if lease.amount > extra:
                continue
            extra -= lease.amount
        free -= lease.amount
        starts.append(lease)
        if free == 0:
            break
    return starts


def _order(queue: Sequence[Queued], now: float, model: Model) -> Sequence[Queued]:
    urgency, guard = model.urgency, model.guard_seconds
    if urgency is None:
        return queue
    old = 0  # so many, at the queue's beginning, have waited too long
    while guard is not None and old < len(queue) and now - queue[old].arrival > guard:
        old += 1
    return [*queue[:old], *sorted(queue[old:], key=lambda lease: urgency(lease, now))]


def _reserve(amount: int, running: list[tuple[float, int]], free: int) -> tuple[float, int]:
    """When ``amount`` is free at the latest, and how much is left beside it then."""
    for end, given_back in sorted(running):
        free += given_back
        if free >= amount:
            return end, free - amount
    return math.inf, 0
