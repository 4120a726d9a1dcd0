"""round_robin: the next node by name after the one that was chosen last."""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import Column, Occasion, Reads, Request, Table


class RoundRobin:
    name = "round_robin"
    reads: Reads = "fabric"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        count = max(1, len(table.names))
        last = occasion.last
        # A node that is gone still counts in the order: by how many names come before its own.
        first = 0 if last is None else sum(1 for name in table.names if name <= last)
        steps = (table.rank - first) % count
        return [Column("turn", 1.0, 100.0 * (1.0 - np.asarray(steps, dtype=np.float64) / count))]
