"""topology_spread: the zone (or rack, node, any label) that has the fewest members of the workload's group.

Reads the fabric: the members in each domain, that is, all nodes with the same value of the key. The key is the request's, else
this policy's argument (``topology_spread=rack/2``), else zones, else nodes. A domain is worth 100 while it would have at most
``skew`` more members than the emptiest one that takes any, 50 with one more, 33 with two. A workload without a group goes to the
domain of which the smallest share is in use. Nodes without the key are worth nothing.
"""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import Column, Occasion, Reads, Request, Table, Texts, Values
from weft.kinds.fields.strategy import read_spread_argument
from weft.scheduler.constraint.affinity import own_groups
from weft.scheduler.policies.shares import free_after, with_free

HOST = ("host", "node", "hostname")


class TopologySpread:
    name = "topology_spread"
    reads: Reads = "fabric"

    def __init__(self, argument: str = "") -> None:
        self.key, self.skew = read_spread_argument(argument)

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        spreads = [(spread.key, spread.skew, spread.group) for spread in request.spread if spread.group]
        if self.key or not spreads:
            groups = own_groups(request) or ("",)
            spreads = [(self.key or _widest(table), self.skew, group) for group in groups]
        values = np.mean([_spread(table, request, *spread) for spread in spreads], axis=0)
        return with_free("spread", values, table, request)


def _widest(table: Table) -> str:
    return "zone" if table.text("zone") is not None else "name"


def _spread(table: Table, request: Request, key: str, skew: int, group: str) -> Values:
    domains: Texts | None = table.text("name" if key in HOST else key)
    if domains is None or not domains.words:
        return np.zeros(len(table.names))
    codes = domains.codes
    there = codes >= 0
    if not group:
        return np.where(there, _mean_by_domain(domains, free_after(table, request)), 0.0)
    counts = np.bincount(codes[there], weights=table.members(group)[there], minlength=len(domains.words))
    taking = codes[there & table.online & ~table.cordoned]
    least = counts[taking].min() if taking.size else 0.0
    beyond = np.maximum(counts + 1.0 - least - skew, 0.0)
    return np.where(there, (100.0 / (1.0 + beyond))[np.maximum(codes, 0)], 0.0)


def _mean_by_domain(domains: Texts, values: Values) -> Values:
    codes, there = domains.codes, domains.codes >= 0
    sums = np.bincount(codes[there], weights=values[there], minlength=len(domains.words))
    sizes = np.bincount(codes[there], minlength=len(domains.words))
    mean: Values = (sums / np.maximum(sizes, 1))[np.maximum(codes, 0)]
    return mean
