"""resource_balance: the node whose resources end up most evenly used, so that none is left over that nobody can take.

Reads each node's own row: the shares of cpu, memory and disk (and of GPUs, where it has any) in use with the workload
there. The value is 100 less the distance between the largest and the smallest of them; among equals the one with most left.
"""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import Column, Occasion, Reads, Request, Table, Values
from weft.scheduler.policies.shares import used_shares, with_room


class ResourceBalance:
    name = "resource_balance"
    reads: Reads = "row"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        shares = np.stack([share for _, _, share in used_shares(table, request)])
        most, least = shares.max(axis=0), shares.min(axis=0)
        gpu, has = _gpu_share(table, request)
        most = np.where(has, np.maximum(most, gpu), most)
        least = np.where(has, np.minimum(least, gpu), least)
        return with_room("balance", 100.0 - (most - least), table, request)


def _gpu_share(table: Table, request: Request) -> tuple[Values, Values]:
    """The share of each node's GPUs in use with the workload there (0–100), and which have any."""
    there = table.gpu_free >= 0
    count = there.sum(axis=1)
    free = np.where(there, table.gpu_free, 0).sum(axis=1)
    wanted = request.gpus.count * request.gpus.share if request.gpus is not None else 0
    all_ = np.maximum(count * 1000, 1)
    return np.clip((all_ - free + wanted) * 100.0 / all_, 0.0, 100.0), count > 0
