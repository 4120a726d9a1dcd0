"""A plan that keeps every promise, old and new: in one of a few simple orders, or else by search. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from weft.scheduler.lease.availability import Amounts, Availability, Checks, OutOfChecks
from weft.scheduler.lease.plan import ORDERS, Plan, Planner, Standing, make_plan
from weft.scheduler.lease.search import search_plan


def keep_promises(
    standings: Sequence[Standing], capacity: Sequence[Amounts], now: float, *, suspends: bool
) -> Plan | None:
    """A plan in which every one of ``standings`` has its slots; None if there is no such plan.

    Without ``suspends`` preempted leases begin again; only where a deadline would be missed so are they suspended after all. With
    it they begin again only where there is no time to suspend them, and promises couldn't be kept otherwise."""
    nodes, ways = [Availability(amounts) for amounts in capacity], [(True, False), (True, True)]
    plan = _try_orders(standings, nodes, now, ways if suspends else [(False, True), *ways])
    if plan is not None:
        return plan
    found = _search(standings, nodes, now, suspends=suspends, restarts=True)
    if found is None and any(_gives_way(one) and one.suspending_until is not None for one in standings):
        ended = [Standing(one.lease) if _gives_way(one) and one.nodes else one for one in standings]
        found = _search(ended, nodes, now, suspends=suspends, restarts=True)
    return found


def keep_work(
    standings: Sequence[Standing], nodes: Sequence[Availability], now: float, checks: Checks, *, searches: bool
) -> Plan | None:
    """Keep promises as ``keep_promises`` does, beside what else takes ``nodes``; what runs is suspended where it must be, and never
    begins again. ``checks`` bounds the simple orders; without ``searches`` nothing else is tried."""
    try:
        plan = _try_orders(standings, nodes, now, [(True, False)], checks)
    except OutOfChecks:
        plan = None
    if plan is None and searches:
        plan = _search(standings, nodes, now, suspends=True, restarts=False)
    return plan


def _try_orders(
    standings: Sequence[Standing],
    nodes: Sequence[Availability],
    now: float,
    ways: Sequence[tuple[bool, bool]],
    checks: Checks | None = None,
) -> Plan | None:
    """``ways``: whether leases are suspended, and whether they begin again. Raises OutOfChecks."""
    for suspend, restart in ways:
        for order in ORDERS:
            plan = make_plan(standings, nodes, now, suspends=suspend, restarts=restart, order=order, checks=checks)
            if all(plan.values()):
                return plan
    return None


def _search(
    standings: Sequence[Standing], nodes: Sequence[Availability], now: float, *, suspends: bool, restarts: bool
) -> Plan | None:
    """Those with an end in time by search, what was split beside them as planned, and the others around them by arrival."""
    planner = Planner([node.copy() for node in nodes], now, suspends=suspends, restarts=True)
    others = sorted((one for one in standings if _gives_way(one)), key=lambda one: one.lease.arrival)
    plan: Plan = {one.lease.id: planner.keep(one) for one in standings if one.pieces}
    for standing in others:
        planner.pin(standing)
    fixed = [one for one in standings if not one.pieces and not _gives_way(one)]
    if fixed:
        found = search_plan(fixed, planner.nodes, now, restarts=restarts)
        if not found:
            return None
        for standing in fixed:
            planner.take_all(standing.lease, found[standing.lease.id])
        plan |= found
    for standing in others:
        plan[standing.lease.id] = planner.place(standing)
    return plan if all(plan.values()) else None


def _gives_way(standing: Standing) -> bool:
    return standing.lease.mode == "best-effort" and (standing.lease.preemptible or not standing.nodes)
