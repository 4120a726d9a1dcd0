"""resource_balance: the node whose resources end up most evenly used, so that no single one is left over.

Reads each node's own row: the shares of cpu, memory and disk (and of GPUs, where it has any) in use with the workload
there. The value is 100 less the distance between the largest and the smallest of them; among equals the one with most free.
"""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import Column, Occasion, Reads, Request, Table
from weft.scheduler.policies.shares import gpu_share, left_parts, with_free


class ResourceBalance:
    name = "resource_balance"
    reads: Reads = "row"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        cpu, memory, disk = parts = left_parts(table, request)
        most = np.maximum(np.maximum(cpu, memory), disk)
        least = np.minimum(np.minimum(cpu, memory), disk)
        if table.gpu_free.size:
            gpu, has = gpu_share(table, request)
            left = 1.0 - gpu / 100.0
            most = np.where(has, np.maximum(most, left), most)
            least = np.where(has, np.minimum(least, left), least)
        return with_free("balance", 100.0 - 100.0 * (most - least), table, request, parts)
