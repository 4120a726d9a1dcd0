"""data_locality: the node that holds most of what the workload reads; among equals the one with most free.

Reads each node's own row: which of the request's data it has (volumes, images, pools and data sets that it reaches), by bytes.
"""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import Column, Occasion, Reads, Request, Table, Values
from weft.scheduler.policies.shares import with_free

LEAST_BYTES = 1024**2  # what a datum of unknown size counts for


class DataLocality:
    name = "data_locality"
    reads: Reads = "row"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        return with_free("data", held_share(table, request), table, request)


def held_share(table: Table, request: Request) -> Values:
    """The share (0–100) of the request's data that each node has; 0 for all if it reads none."""
    held = np.zeros(len(table.names))
    whole = 0
    for datum in request.data:
        size = max(datum.bytes, LEAST_BYTES)
        whole += size
        held += table.holds(datum.name) * float(size)
    return held * (100.0 / whole) if whole else held
