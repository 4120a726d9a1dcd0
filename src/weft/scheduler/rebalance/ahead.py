"""Choose the guests that leave a node before it is short of cores, and where to. Pure.

The least that removes the excess of every hour goes: one guest that is enough alone, the cheapest of those; else the one that takes
most away for its bytes, and so on. A target stays below CALM in every hour ahead with what comes, or it would be short next.
Guests that talk with one that goes follow it, if they fit there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from weft.insight.course import CALM, SHORT
from weft.scheduler.rebalance.model import Flags, Reals, Whole

MOST_GROUP = 8
RELATED = 0.3  # of the lesser one's own traffic
MOST_STEPS = 16
LEAST_CORES = 0.05  # that a guest must take away to be worth a migration

Check = Callable[[int, int], Flags | None]


class Shortfall(msgspec.Struct, frozen=True, kw_only=True):
    """``n`` nodes, ``g`` guests, ``h`` hours ahead; use in cores. A node or guest of which nothing is forecast has NaN."""

    node: int  # that will be short
    first: int  # hour
    last: int
    full: Reals  # (n)
    high: Reals  # (n, h): upper end of each node's use
    target: Flags  # (n): nodes that take guests
    at: Whole  # (g)
    use: Reals  # (g, h)
    size: Reals  # (g): bytes that a migration transfers
    mobile: Flags  # (g)
    groups: Sequence[Sequence[int]] = ()  # guests that belong together


class Departure(msgspec.Struct, frozen=True):
    """``first``: the guest that it follows, or itself."""

    guest: int
    target: int
    first: int


def plan_ahead(short: Shortfall, check: Check) -> tuple[list[Departure], float]:
    """The departures in order, and the cores that still lack in the worst hour. ``check`` as in ``lazy.find_steps``."""
    high, found = short.high.copy(), list[Departure]()
    hours = slice(short.first, short.last + 1)
    left = [
        guest
        for guest in np.flatnonzero(short.mobile & (short.at == short.node)).tolist()
        if short.use[guest, hours].max() >= LEAST_CORES
    ]

    def find_excess() -> Reals:
        excess: Reals = high[short.node, hours] - SHORT * short.full[short.node]
        return excess

    def send(guest: int, first: int, nodes: Flags | None = None) -> int | None:
        """Its target, counted there; None if no node takes it."""
        allowed = _find_targets(short, high, guest)
        if nodes is not None:
            allowed &= nodes
        while allowed.any():
            after = (high + short.use[guest]).max(axis=1) / short.full
            target = int(np.where(allowed, after, np.inf).argmin())
            refused = check(guest, target)
            if refused is None:
                high[short.node] -= short.use[guest]
                high[target] += short.use[guest]
                found.append(Departure(guest, target, first))
                left.remove(guest)
                return target
            allowed &= refused
            allowed[target] = False
        return None

    while left and len(found) < MOST_STEPS and (excess := find_excess()).max() > 0:
        for guest in _rank(short, left, excess, hours):
            target = send(guest, guest)
            if target is not None:
                there = np.arange(len(short.full)) == target
                for other in _find_company(short, guest, left):
                    send(other, guest, there)
                break
        else:
            break  # no node takes any of them
    return found, max(0.0, float(find_excess().max()))


def _rank(short: Shortfall, left: Sequence[int], excess: Reals, hours: slice) -> list[int]:
    """Those that are enough alone by their size, then the others by what they take away for it."""
    enough, others = [], []
    for guest in left:
        takes = short.use[guest, hours]
        if (takes >= excess).all():
            enough.append((short.size[guest], guest))
        else:
            others.append((-float(np.minimum(takes, np.maximum(excess, 0.0)).sum()) / (short.size[guest] + 1.0), guest))
    return [guest for _, guest in (*sorted(enough), *sorted(others))]


def _find_targets(short: Shortfall, high: Reals, guest: int) -> Flags:
    after = high + short.use[guest]
    fits: Flags = short.target & np.isfinite(after).all(axis=1)
    fits &= np.nan_to_num(after, nan=np.inf).max(axis=1) <= CALM * short.full
    fits[short.node] = False
    return fits


def _find_company(short: Shortfall, guest: int, left: Sequence[int]) -> list[int]:
    """Others of its group that are on the node, too."""
    return [other for group in short.groups if guest in group for other in group if other in left]


def find_groups(pairs: Mapping[tuple[int, int], float]) -> list[list[int]]:
    """Guests that exchange more than RELATED of what the lesser one exchanges at all, by bytes a second of each pair. Those that
    exchange most come first, and no group has more than MOST_GROUP."""
    totals: dict[int, float] = {}
    for pair, rate in pairs.items():
        for guest in pair:
            totals[guest] = totals.get(guest, 0.0) + rate
    group: dict[int, list[int]] = {}
    for (a, b), rate in sorted(pairs.items(), key=lambda one: (-one[1], one[0])):
        if rate <= RELATED * min(totals[a], totals[b]):
            continue
        one, other = group.setdefault(a, [a]), group.setdefault(b, [b])
        if one is not other and len(one) + len(other) <= MOST_GROUP:
            one += other
            group |= dict.fromkeys(other, one)
    return [list(members) for members in {id(found): found for found in group.values() if len(found) > 1}.values()]
