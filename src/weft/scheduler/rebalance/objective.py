"""weft's own objective, for files and for the running fabric: even load, talkers together, and a price for each migration.

    score = 100 × (sd of cores in use + sd of memory in use + 0.2 sd of requested cores + 0.2 sd of requested memory)
          + 600 × Σ rate × round trip / (Σ rate × the median round trip between two nodes)

``Σ rate`` is at least ``LEAST_RATE`` for each node, so that a little talk counts little. Shares are of each node's own capacity.
What a guest uses is the 95th percentile that its forecasts give, or, where there is no measurement, what it requests. A migration
costs ``PRICE`` × the share of a node's memory that it transfers / the number of nodes: its gain falls with the number of nodes,
too, so the price means the same in a small fabric and in a large one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from weft.scheduler.rebalance.model import Problem, Reals

PRICE = 50.0
FULLEST = 0.9  # no migration fills a node further than this by usage
POINTS, TRAFFIC = 100.0, 600.0
LEAST_RATE = 100_000.0  # bytes per second
_WEIGHTS = (1.0, 1.0, 0.2, 0.2)


class RebalanceNode(msgspec.Struct, frozen=True):
    """A node. Amounts are thousandths of a core, bytes of memory and of disk; ``given`` is what may be allocated, ``other`` what
    else is allocated there and stays."""

    name: str
    capacity: tuple[int, int, int]
    given: tuple[int, int, int]
    other: tuple[int, int, int] = (0, 0, 0)
    other_used: tuple[float, float] = (0.0, 0.0)
    counts: bool = True  # it is online
    takes: bool = True  # it takes guests


class Guest(msgspec.Struct, frozen=True):
    name: str
    node: int
    amounts: tuple[int, int, int]
    used: tuple[float, float]  # thousandths of a core, bytes of memory
    size: float  # bytes that its migration transfers
    mobile: bool = True


def make_problem(
    machines: Sequence[RebalanceNode],
    guests: Sequence[Guest],
    pairs: Mapping[tuple[int, int], float],
    round_trips: Reals | None,
    *,
    price: float = PRICE,
) -> Problem:
    """``pairs``: bytes per second of guests that talk; ``round_trips``: milliseconds (n, n)."""
    n, g = len(machines), len(guests)
    capacity = np.array([m.capacity for m in machines], dtype=np.float64).reshape(n, 3).T
    shares = 1.0 / np.maximum(capacity[[0, 1, 0, 1]], 1.0)
    other = np.array([[*m.other_used, *m.other[:2]] for m in machines], dtype=np.float64).reshape(n, 4).T
    load = np.array([[*guest.used, *guest.amounts[:2]] for guest in guests], dtype=np.float64).reshape(g, 4)
    counted = np.array([m.counts for m in machines], dtype=np.bool_)
    at = np.array([guest.node for guest in guests], dtype=np.int64)
    amounts = np.array([guest.amounts for guest in guests], dtype=np.int64).reshape(g, 3)
    need = np.concatenate([amounts, np.ceil(load[:, :2]).astype(np.int64)], axis=1)
    free = np.array([m.given for m in machines], dtype=np.int64).reshape(n, 3).T
    free = free - np.array([m.other for m in machines], dtype=np.int64).reshape(n, 3).T
    free = np.concatenate([free, np.floor(FULLEST * capacity[:2] - other[:2]).astype(np.int64)])
    for resource in range(len(free)):
        free[resource] -= np.bincount(at, need[:, resource], minlength=n).astype(np.int64)
    size = np.array([guest.size for guest in guests], dtype=np.float64)
    memory = capacity[1][counted].mean() if counted.any() else 1.0
    traffic, talking = 0.0, [(a, b, rate) for (a, b), rate in pairs.items() if rate > 0.0 and a != b]
    if talking and round_trips is not None and n > 1:
        usual = float(np.median(round_trips[~np.eye(n, dtype=np.bool_)]))
        if usual > 0.0:
            traffic = TRAFFIC / (max(sum(rate for _, _, rate in talking), LEAST_RATE * n) * usual)
    return Problem(
        weights=POINTS * np.array(_WEIGHTS),
        base=other * shares,
        scale=shares,
        counted=counted,
        load=load,
        at=at,
        need=need,
        free=free,
        target=np.array([m.takes for m in machines], dtype=np.bool_),
        mobile=np.array([guest.mobile for guest in guests], dtype=np.bool_),
        penalty=np.zeros(n),
        price=price * size / max(1.0, memory) / max(1, int(counted.sum())),
        size=size,
        pairs=talking if traffic else (),
        round_trips=round_trips if traffic else None,
        traffic=traffic,
    )
