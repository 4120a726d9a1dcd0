"""hardware_match: the hardware that the workload needs, and no more: GPUs stay free for workloads that need them.

Reads each node's own row. ``special`` (half): without need of a GPU a node without GPUs is worth 100 and one with them 0;
with need of one, the smaller the memory of its largest, as long as it is enough, the better. ``shape`` (half): 100 where
memory per core is that of the request, 50 where it is twice or half.
"""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import Column, Occasion, Reads, Request, Table, Values


class HardwareMatch:
    name = "hardware_match"
    reads: Reads = "row"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        return [Column("special", 0.5, _special(table, request)), Column("shape", 0.5, _shape(table, request))]


def _special(table: Table, request: Request) -> Values:
    has = (table.gpu_free >= 0).any(axis=1) if table.gpu_free.size else np.zeros(len(table.names), dtype=np.bool_)
    if request.gpus is None:
        return np.where(has, 0.0, 100.0)
    if not request.gpus.memory:
        return np.where(has, 100.0, 0.0)
    largest = np.maximum(table.gpu_memory.max(axis=1), 1) if table.gpu_memory.size else np.ones(len(table.names))
    return np.where(has, 100.0 * np.minimum(request.gpus.memory / largest, 1.0), 0.0)


def _shape(table: Table, request: Request) -> Values:
    cpu, memory, _ = request.amounts
    if not cpu or not memory:
        return np.full(len(table.names), 100.0)
    there = np.maximum(table.capacity[1], 1) / np.maximum(table.capacity[0], 1)
    values: Values = 100.0 / (1.0 + np.abs(np.log2(there * cpu / memory)))
    return values
