"""Puts items into bins by local search: begins anywhere, lets bins overflow, and exchanges until none does.

Pure and bounded by steps, not by time, so the same input gives the same answer on any machine. Without an answer it proves
nothing.
"""

from __future__ import annotations

import msgspec
import numpy as np

from weft.contracts.policy import Flags, Values, Whole

_TABU = 12  # steps for which an item stays after an exchange
_STALE = 400  # steps without a better state, after which some items go to random bins


class Problem(msgspec.Struct, frozen=True):
    wanted: Whole  # items × resources
    free: Whole  # bins × resources: what these items may fill
    allowed: Flags  # items × bins


def is_solution(problem: Problem, bins: Whole) -> bool:
    """Whether every item is in an allowed bin, and no bin overflows."""
    items = np.arange(len(bins))
    return bool(problem.allowed[items, bins].all() and (_loads(problem, bins) <= problem.free).all())


def find_solution(problem: Problem, start: Whole, steps: int, seed: int = 0) -> Whole | None:
    """A bin for each item such that none overflows, searched from ``start`` (which must be allowed); None if ``steps`` exchanges
    found none."""
    draw = np.random.default_rng(seed)
    scale = np.maximum(problem.free.max(axis=0), 1).astype(np.float64)
    wanted, free = problem.wanted / scale, problem.free / scale
    bins = start.copy()
    loads = _sum(wanted, bins, len(free))
    tabu = np.zeros(len(bins), dtype=np.int64)
    best, best_at = np.inf, 0
    for step in range(steps):
        over = np.maximum(loads - free, 0.0)
        cost = (over + over * over).sum(axis=1)
        full = np.flatnonzero(cost > 1e-12)
        if not full.size:
            if is_solution(problem, bins):
                return bins
            return None  # only by rounding
        total = float(cost.sum())
        if total < best - 1e-12:
            best, best_at = total, step
        elif step - best_at > _STALE:
            best, best_at = np.inf, step
            _throw(problem, bins, draw)
            loads = _sum(wanted, bins, len(free))
            continue
        source = int(full[draw.integers(full.size)])
        exchange = _find_exchange(problem, wanted, free, loads, cost, bins, source, tabu > step, draw)
        if exchange is None:
            _throw(problem, bins, draw)
            loads = _sum(wanted, bins, len(free))
            continue
        item, target, other = exchange
        loads[source] -= wanted[item]
        loads[target] += wanted[item]
        bins[item] = target
        tabu[item] = step + _TABU + int(draw.integers(_TABU))
        if other is not None:
            loads[target] -= wanted[other]
            loads[source] += wanted[other]
            bins[other] = source
            tabu[other] = step + _TABU + int(draw.integers(_TABU))
    return None


def _find_exchange(
    problem: Problem,
    wanted: Values,
    free: Values,
    loads: Values,
    cost: Values,
    bins: Whole,
    source: int,
    tabu: Flags,
    draw: np.random.Generator,
) -> tuple[int, int, int | None] | None:
    """The best of: an item of ``source`` goes to another bin, or changes places with an item of another."""
    mine = np.flatnonzero((bins == source) & ~tabu)
    theirs = np.flatnonzero((bins != source) & problem.allowed[:, source] & ~tabu)
    if not mine.size:
        return None
    # Out: item i of mine to bin b. What source gains is the same for all bins.
    left = _cost(loads[source] - wanted[mine] - free[source])
    there = _cost(loads[None, :, :] + wanted[mine][:, None, :] - free[None, :, :])
    gains = left[:, None] + there - cost[None, :]
    gains[~problem.allowed[mine]] = np.inf
    gains[:, source] = np.inf
    place = int(gains.argmin())
    best = float(gains.flat[place])
    exchange: tuple[int, int, int | None] = (int(mine[place // len(free)]), place % len(free), None)
    if theirs.size:
        where = bins[theirs]
        more = wanted[theirs][None, :, :] - wanted[mine][:, None, :]
        gains = _cost(loads[source] + more - free[source])
        gains = gains + _cost((loads[where] - free[where])[None, :, :] - more) - cost[where][None, :]
        gains[~problem.allowed[mine][:, where]] = np.inf
        gains = gains + draw.random(gains.shape) * 1e-9  # ties fall differently each time
        place = int(gains.argmin())
        if float(gains.flat[place]) < best:
            other = int(theirs[place % len(theirs)])
            best = float(gains.flat[place])
            exchange = (int(mine[place // len(theirs)]), int(bins[other]), other)
    return exchange if np.isfinite(best) else None


def _throw(problem: Problem, bins: Whole, draw: np.random.Generator) -> None:
    """Put some items into random bins."""
    for item in draw.choice(len(bins), size=max(1, len(bins) // 20), replace=False):
        places = np.flatnonzero(problem.allowed[item])
        bins[item] = places[draw.integers(places.size)]


def _cost(over: Values) -> Values:
    """Cost of bins that hold so much too much: more than proportional, so that one large overflow is worse than two small."""
    over = np.maximum(over, 0.0)
    cost: Values = (over + over * over).sum(axis=-1)
    return cost


def _loads(problem: Problem, bins: Whole) -> Whole:
    loads = np.zeros_like(problem.free)
    np.add.at(loads, bins, problem.wanted)
    return loads


def _sum(wanted: Values, bins: Whole, count: int) -> Values:
    loads = np.zeros((count, wanted.shape[1]))
    np.add.at(loads, bins, wanted)
    return loads
