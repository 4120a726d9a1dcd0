"""resource_balance: the node whose resources end up most evenly used, so that none is left over that nobody can take.

Reads each node's own row: the shares of cpu, memory and disk (and of GPUs, where it has any) in use with the workload
there. The value is 100 less the distance between the largest and the smallest of them; among equals the one with most left.
"""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import Column, Occasion, Reads, Request, Table
from weft.scheduler.policies.shares import gpu_share, used_shares, with_room


class ResourceBalance:
    name = "resource_balance"
    reads: Reads = "row"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        shares = np.stack([share for _, _, share in used_shares(table, request)])
        most, least = shares.max(axis=0), shares.min(axis=0)
        gpu, has = gpu_share(table, request)
        most = np.where(has, np.maximum(most, gpu), most)
        least = np.where(has, np.minimum(least, gpu), least)
        return with_room("balance", 100.0 - (most - least), table, request)
