"""How full nodes would be: the numbers that load policies weight. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.contracts.policy import RESOURCES, Column, Flags, Request, Table, Values, Whole
from weft.scheduler.table.devices import count_free

WEIGHTS = {"cpu": 0.4, "memory": 0.4, "disk": 0.2}
GPU_WEIGHT = 0.5  # for a request with GPUs; the other resources share the rest
FREE_WEIGHT = 0.001


def find_load(table: Table, request: Request) -> Whole:
    """Load of every node, by the basis that the request is decided on: rows as RESOURCES."""
    return table.used if request.basis == "used" else table.allocated


def used_shares(table: Table, request: Request) -> list[tuple[str, float, Values]]:
    """Name and weight of each resource, and the share of it (0–100) in use on every node once the request is there."""
    wanted = np.asarray(request.amounts, dtype=np.int64)[:, None]
    shares = (find_load(table, request) + wanted) * 100.0
    shares /= np.maximum(table.capacity, 1)
    np.minimum(shares, 100.0, out=shares)
    np.maximum(shares, 0.0, out=shares)
    return [(resource, WEIGHTS[resource], shares[row]) for row, resource in enumerate(RESOURCES)]


def all_shares(table: Table, request: Request) -> list[tuple[str, float, Values]]:
    """Shares as of ``used_shares``, and GPUs if the request has some."""
    shares = used_shares(table, request)
    if request.gpus is None:
        return shares
    gpu, _ = gpu_share(table, request)
    return [("gpu", GPU_WEIGHT, gpu), *((name, (1.0 - GPU_WEIGHT) * weight, share) for name, weight, share in shares)]


def left_parts(table: Table, request: Request) -> list[Values]:
    """Part of each resource (0–1) that would be free on every node once the request is there."""
    parts = []
    free = table.free if request.basis == "allocation" else table.capacity - table.used
    for row, wanted in enumerate(request.amounts):
        part = (free[row] - wanted) / np.maximum(table.capacity[row], 1)
        np.maximum(part, 0.0, out=part)
        np.minimum(part, 1.0, out=part)
        parts.append(part)
    return parts


def free_after(table: Table, request: Request) -> Values:
    """How much would be free on every node, 0–100: the resources by their weights."""
    return _weigh(left_parts(table, request))


def with_free(
    name: str, values: Values, table: Table, request: Request, parts: Sequence[Values] | None = None
) -> list[Column]:
    """``values`` as the one thing that counts; among equals the node with most left (``parts``: see ``left_parts``)."""
    free = _weigh(left_parts(table, request) if parts is None else parts)
    return [Column(name, 1.0 - FREE_WEIGHT, values), Column("free", FREE_WEIGHT, free)]


def _weigh(parts: Sequence[Values]) -> Values:
    cpu, memory, disk = (100.0 * weight * part for part, weight in zip(parts, WEIGHTS.values(), strict=True))
    left: Values = cpu + memory + disk
    return left


def gpu_share(table: Table, request: Request) -> tuple[Values, Flags]:
    """The share of each node's GPUs in use with the workload there (0–100), and which have any."""
    count = table.number("gpu")
    if count is None:
        return np.full(len(table.names), 100.0), np.zeros(len(table.names), dtype=np.bool_)
    free = count_free(table.gpu_free)
    wanted = request.gpus.count * request.gpus.share if request.gpus is not None else 0
    all_ = np.maximum(count * 1000, 1)
    return np.clip((all_ - free + wanted) * 100.0 / all_, 0.0, 100.0), count > 0
