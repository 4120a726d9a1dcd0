"""Place a request where it packs best: on nodes in use whose free resources have the request's shape, so that none remains unused.

Capacity is stranded on a node that runs out of one resource with much of another still free. So the best node is the one whose
free resources have the direction of the request (vector packing by alignment: Panigrahy et al., "Heuristics for vector bin
packing", 2011; Grandl et al., "Multi-resource packing for cluster schedulers", SIGCOMM 2014), and which then has equal
shares free. Unused nodes come after all others, with one exception: where no used one matches, and all of them together have
little capacity, another is begun, for it will be needed soon. That alone saves half a percent of the nodes.
Nodes with free GPUs are kept for workloads that request GPUs, and nodes that other workloads' constraints require, for these. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.contracts.policy import RESOURCES, Column, Flags, Request, Table, Values
from weft.language.tree import Expression
from weft.scheduler.constraint.match import find_meeting, split

ANGLE, TURN, BALANCE, FILL, USED = (
    0.244,
    0.195,
    0.063,
    0.031,
    0.467,
)  # found on generated loads, see benchmarks/optimality
BEGIN = 90.0  # what "used" gives an unused node that may be begun
KEPT = 0.51  # before all else
LEVELS = 4  # of demand for a kind of node; demand that differs by less is equal
LITTLE = 0.5  # of a node: so little capacity in all used ones
_EDGE = 0.02  # of a node: what is smaller has no shape


def packing_terms(table: Table, request: Request, bound: Sequence[tuple[Expression, float]] = ()) -> list[Column]:
    """The terms of every node, with weights that add up to 1. They depend on all nodes: sizes are relative to the mean node, and
    all free capacity counts. ``bound`` as of an Outlook."""
    columns = _packed(table, request)
    if request.gpus is None and (table.gpu_free > 0).any():
        columns = _first("gpus kept", np.where((table.gpu_free > 0).any(axis=1), 0.0, 100.0), columns)
    own = None if request.constraint is None else split(request.constraint)[0]
    others = [(tree, share) for tree, share in bound if tree != own]
    if not others:
        return columns
    asked = np.zeros(len(table.names))
    for tree, share in others:
        np.maximum(asked, np.where(find_meeting(tree, table), share, 0.0), out=asked)
    return _first("kind kept", 100.0 - np.ceil(asked * LEVELS) * (100.0 / LEVELS), columns)


def _first(name: str, values: Values, columns: list[Column]) -> list[Column]:
    """Give ``column`` the first word: the others decide between equals."""
    rest = 1.0 - KEPT
    return [Column(name, KEPT, values), *(Column(c.name, c.weight * rest, c.values) for c in columns)]


def _packed(table: Table, request: Request) -> list[Column]:
    rows = [row for row, amount in enumerate(request.amounts) if amount > 0] or list(range(len(RESOURCES)))
    capacity = np.maximum(table.capacity[rows], 1)
    free = np.maximum(table.capacity[rows] - table.allocated[rows], 0)
    wanted = np.asarray(request.amounts, dtype=np.float64)[rows, None]
    used: Flags = np.any(table.allocated > 0, axis=0)
    scale = capacity.mean(axis=1, keepdims=True)
    before, asked = free / scale, wanted / scale
    after = np.maximum(before - asked, 0.0)
    angle = _angle(before, asked)
    even = np.ones((len(rows), 1))
    turn = _angle(after + _EDGE, even) - _angle(before + _EDGE, even)
    shares = after * scale / capacity
    in_use = np.where(used, 100.0, 0.0)
    if float(before.min(axis=0)[used & table.online & ~table.cordoned].sum()) < LITTLE:
        in_use[~used] = BEGIN
    return [
        Column("shape", ANGLE, _percent(angle / (np.pi / 2))),
        Column("balance", BALANCE, _percent(shares.max(axis=0) - shares.min(axis=0))),
        Column("turn", TURN, _percent(turn / np.pi + 0.5)),
        Column("fill", FILL, _percent(shares.mean(axis=0))),
        Column("used", USED, in_use),
    ]


def _angle(one: Values, other: Values) -> Values:
    """Angles between the vectors of each column, in radians; of one that is nothing, a right angle."""
    lengths = np.sqrt((one * one).sum(axis=0) * (other * other).sum(axis=0))
    cosine = (one * other).sum(axis=0) / np.maximum(lengths, 1e-12)
    angle: Values = np.arccos(np.clip(cosine, 0.0, 1.0))
    return angle


def _percent(loss: Values) -> Values:
    values: Values = 100.0 * (1.0 - np.clip(loss, 0.0, 1.0))
    return values
