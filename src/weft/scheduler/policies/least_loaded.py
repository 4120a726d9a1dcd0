"""least_loaded: the node with most free once the workload is there (0.4 cpu, 0.4 memory, 0.2 disk; GPUs count half for a
workload that requests some)."""

from __future__ import annotations

from weft.contracts.policy import Column, Occasion, Reads, Request, Table
from weft.scheduler.policies.shares import WEIGHTS, all_shares


class LeastLoaded:
    name = "least_loaded"
    reads: Reads = "row"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        return [Column(name, weight, 100.0 - share) for name, weight, share in all_shares(table, request)]

    def load(self, request: Request) -> tuple[float, float, float]:
        return -WEIGHTS["cpu"], -WEIGHTS["memory"], -WEIGHTS["disk"]
