"""How full nodes would be: the numbers that load policies weigh. Pure."""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import RESOURCES, Request, Table, Values

WEIGHTS = {"cpu": 0.4, "memory": 0.4, "disk": 0.2}


def used_shares(table: Table, request: Request) -> list[tuple[str, float, Values]]:
    """For each resource its name, weight, and the share of it (0–100) in use on every node once the request is there."""
    wanted = np.asarray(request.amounts, dtype=np.int64)[:, None]
    capacity = np.maximum(table.capacity, 1)
    shares = np.clip((table.allocated + wanted) * 100.0 / capacity, 0.0, 100.0)
    return [(resource, WEIGHTS[resource], shares[row]) for row, resource in enumerate(RESOURCES)]
