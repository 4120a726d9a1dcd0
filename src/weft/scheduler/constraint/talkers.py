"""The preference ``near: talkers``: the node from which a workload reaches those it talks to soonest, by rate × round trip. Pure.

A value is 100 where all its peers are, 50 at the median of all nodes, and falls with the sum of rate × round trip. Anti-affinity
wins: where a member of a group is that the workload prefers to avoid, nearness counts nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from weft.contracts.policy import Column, Reads, Request, Table, Values
from weft.objects.quantity import format_bytes
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.table.talkers import find_talkers, name_talkers

WEIGHT = 1.0
UNKNOWN_FACTOR = 1.5  # of the longest known round trip: what an unknown one counts
MOST_NAMED = 3


class NearTalkers:
    name = "near talkers"
    reads: Reads = "fabric"

    def asks(self, request: Request) -> Hashable:
        return find_term(request) or None

    def weight(self, request: Request) -> float:
        return WEIGHT if find_term(request) else 0.0

    def terms(self, table: Table, request: Request) -> list[Column]:
        uid = find_term(request)
        values = score_nearness(table, find_talkers(table, uid))
        for term in request.leans:
            if term.what == "apart":
                values = np.where(table.members(term.name) > 0, 0.0, values)
        return [Column(self.name, WEIGHT, values)]


def find_term(request: Request) -> str:
    """The uid of the workload that wants to be near its talkers; "": it doesn't."""
    return next((term.name for term in request.leans if term.what == "talkers"), "") if request.leans else ""


def score_nearness(table: Table, places: Sequence[tuple[str, float]]) -> Values:
    """0–100 for each node; ``places`` are nodes' uids with the rates to them."""
    costs = weigh(table, places)
    if not places or not costs.any():
        return np.zeros(len(table.names))
    half = float(np.median(costs[costs > 0]))
    values: Values = 100.0 / (1.0 + costs / half)
    return values


def weigh(table: Table, places: Sequence[tuple[str, float]]) -> Values:
    """The mean round trip from each node to ``places``, weighted by rate, in ms."""
    costs = np.zeros(len(table.names))
    total = sum(rate for _, rate in places)
    for uid, rate in places:
        trips = table.distance(uid).copy()
        known = trips[np.isfinite(trips)]
        trips[~np.isfinite(trips)] = UNKNOWN_FACTOR * float(known.max(initial=0.0)) or 1.0
        costs += trips * rate / total
    return costs


def describe_talkers(snapshot: Snapshot, request: Request, row: int | None) -> list[str]:
    """One sentence on whom it talks to, and how far those are from the node of ``row``; none where it doesn't prefer to be near."""
    uid = find_term(request)
    if not uid:
        return []
    own = snapshot.talkers.locate(uid)
    if own is None or not (found := list(name_talkers(snapshot.talkers, uid, own.project))):
        return ["near talkers: no traffic with other workloads is known, so this preference decides nothing"]
    found.sort(key=lambda one: -one[2])
    told = [_describe(snapshot, row, *one) for one in found[:MOST_NAMED]]
    rest = sum(rate for _, _, rate in found[MOST_NAMED:])
    more = [f"{len(found) - MOST_NAMED} more {_rate(rest)}"] if rest else []
    return [f"near talkers: {'; '.join([*told, *more])}"]


def _describe(snapshot: Snapshot, row: int | None, name: str, node_uid: str | None, rate: float) -> str:
    index = None if node_uid is None else snapshot.index_of(node_uid)
    if index is None or node_uid is None:
        return f"{name} {_rate(rate)}"
    place = f"on {snapshot.names[index]}"
    if row is None or row == index:
        return f"{name} {_rate(rate)} {place}"
    trip = float(snapshot.distance(node_uid)[row])
    return f"{name} {_rate(rate)} {place}, {trip:.3g} ms away" if np.isfinite(trip) else f"{name} {_rate(rate)} {place}"


def _rate(rate: float) -> str:
    return f"{format_bytes(rate)}/s"
