"""best_fit: the node with least free once the workload is there, so that others stay free for large workloads."""

from __future__ import annotations

from weft.contracts.policy import Column, Occasion, Reads, Request, Table
from weft.scheduler.policies.shares import WEIGHTS, all_shares


class BestFit:
    name = "best_fit"
    reads: Reads = "row"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        return [Column(name, weight, share) for name, weight, share in all_shares(table, request)]

    def load(self, request: Request) -> tuple[float, float, float]:
        return WEIGHTS["cpu"], WEIGHTS["memory"], WEIGHTS["disk"]
