"""What is left on nodes, before and after a request has its place there, and what is lost by it. Pure.

A sort of workload with GPUs can use of a node's free thousandths: ``several`` – as many of its kind as GPUs, cpu and memory
allow; ``one`` – all devices that one of it could be put on. ``usable`` is the mean of both: the first sees a lack of cpu or
memory coming, the second is the measure of Weng et al., "Beware of Fragmentation" (ATC 2023), of what isn't fragmented.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec
import numpy as np

from weft.contracts.policy import Codes, Flags, Outlook, Request, Sort, Table, Texts, Values, Whole
from weft.scheduler.devices import WHOLE, find_fitting

_MOST = 1e9  # how many of something that asks for nothing fit on a node

TIE = 1e-5  # the weight of what only decides between equals


class Residue(msgspec.Struct, frozen=True, eq=False):
    """Free cpu (thousandths), memory (bytes) and GPUs (rows × devices, thousandths, 0 where there is none) of nodes, and
    the code of each node's model (that of its first device)."""

    cpu: Values
    memory: Values
    gpus: Codes
    models: Codes


class Sorts(msgspec.Struct, frozen=True, eq=False):
    """Sorts of workloads as columns. ``shapes`` are the different (count, share) of their GPUs, ``shape`` whose each has;
    ``choices`` the different sets of models, ``choice`` likewise. ``cpu`` and ``memory`` are NaN where none is asked for."""

    cpu: Values
    memory: Values
    size: Values
    shapes: list[tuple[int, int]]
    shape: Whole
    choices: list[tuple[str, ...]]
    choice: Whole


def read_sorts(sorts: Sequence[Sort]) -> Sorts:
    """The columns of ``sorts``; one without GPUs has shape (0, 0)."""
    asks = [(0, 0) if s.gpus is None else (s.gpus.count, s.gpus.share) for s in sorts]
    models = [() if s.gpus is None else s.gpus.models for s in sorts]
    shapes, choices = sorted(set(asks)), sorted(set(models))
    return Sorts(
        cpu=np.array([s.amounts[0] or np.nan for s in sorts], dtype=np.float64),
        memory=np.array([s.amounts[1] or np.nan for s in sorts], dtype=np.float64),
        size=np.array([count * share for count, share in asks], dtype=np.float64),
        shapes=shapes,
        shape=np.array([shapes.index(ask) for ask in asks], dtype=np.int64),
        choices=choices,
        choice=np.array([choices.index(names) for names in models], dtype=np.int64),
    )


@functools.lru_cache(maxsize=8)
def read_outlook(outlook: Outlook) -> Sorts:
    return read_sorts(outlook.sorts)


def find_residue(table: Table) -> Residue:
    """What is free now."""
    free = np.maximum(table.capacity - table.allocated, 0)
    codes = table.gpu_model.codes
    first = codes[:, 0] if codes.shape[1] else np.full(len(table.names), -1, dtype=np.int32)
    return Residue(free[0].astype(np.float64), free[1].astype(np.float64), np.maximum(table.gpu_free, 0), first)


def find_rest(table: Table, request: Request, now: Residue) -> Residue:
    """What would be free with the request there: devices go as ``choose_devices`` gives them. Nonsense for a node that
    it doesn't fit on, but never negative."""
    gpus = now.gpus
    ask = request.gpus
    if ask is not None:
        fitting = find_fitting(table, ask)
        order = np.argsort(np.where(fitting, gpus, 2 * WHOLE), axis=1, kind="stable")[:, : ask.count]
        taken = np.take_along_axis(gpus, order, axis=1) - ask.share
        gpus = gpus.copy()
        np.put_along_axis(gpus, order, np.maximum(taken, 0), axis=1)
    cpu, memory, _ = request.amounts
    return Residue(np.maximum(now.cpu - cpu, 0.0), np.maximum(now.memory - memory, 0.0), gpus, now.models)


def find_usable(residue: Residue, sorts: Sorts, models: Texts) -> Values:
    """Nodes × sorts: thousandths of GPUs that each could use there (of a sort without GPUs: how many would fit)."""
    slots, one = _find_slots(residue.gpus, sorts.shapes)
    room = np.fmin(residue.cpu[:, None] / sorts.cpu, residue.memory[:, None] / sorts.memory)
    room = np.fmin(room, _MOST, out=room)
    room[room < 1.0] = 0.0
    several = np.minimum(slots[:, sorts.shape], room)
    usable: Values = 0.5 * (several * sorts.size + one[:, sorts.shape] * (several > 0.0))
    bare = sorts.size == 0.0
    if bare.any():
        usable[:, bare] = room[:, bare]
    if len(sorts.choices) > 1 or sorts.choices != [()]:
        usable *= allow_models(residue.models, sorts, models)
    return usable


def find_unfragmented(residue: Residue, sorts: Sorts, models: Texts) -> Values:
    """Nodes × sorts: thousandths of GPUs that aren't fragmented for each, as the paper counts: by GPUs and cpu."""
    slots, one = _find_slots(residue.gpus, sorts.shapes)
    runs = (slots >= 1.0)[:, sorts.shape] & ~(residue.cpu[:, None] < sorts.cpu) & (sorts.size > 0.0)
    if len(sorts.choices) > 1 or sorts.choices != [()]:
        runs &= allow_models(residue.models, sorts, models)
    whole: Values = one[:, sorts.shape] * runs
    return whole


def allow_models(codes: Codes, sorts: Sorts, models: Texts) -> Flags:
    """Nodes × sorts: whether the node's model is one that the sort may have."""
    allowed = np.ones((len(sorts.choices), len(models.words) + 1), dtype=np.bool_)
    for row, names in enumerate(sorts.choices):
        if names:
            allowed[row] = False
            allowed[row, [models.places[name] for name in names if name in models.places]] = True
    flags: Flags = allowed[:, codes].T[:, sorts.choice]
    return flags


def find_tightness(rest: Residue, outlook: Outlook) -> Values:
    """How little is left (0–100), by the largest node: what decides between equals."""
    cpu, memory, _, gpus = outlook.largest
    left = rest.cpu / cpu + rest.memory / memory + rest.gpus.sum(axis=1) / gpus
    tightness: Values = 100.0 - np.minimum(left, 3.0) * (100.0 / 3.0)
    return tightness


def _find_slots(gpus: Codes, shapes: Sequence[tuple[int, int]]) -> tuple[Values, Values]:
    """Nodes × shapes: how many of each the devices could take, and the free thousandths of devices that one could be on."""
    slots = np.zeros((gpus.shape[0], len(shapes)))
    one = np.zeros_like(slots)
    for column, (count, share) in enumerate(shapes):
        if count == 0:
            continue
        times = gpus // share
        if count == 1:
            slots[:, column] = times.sum(axis=1)
            one[:, column] = (gpus * (times > 0)).sum(axis=1)
        else:
            fitting = (times > 0).sum(axis=1)
            slots[:, column] = fitting // count
            one[:, column] = np.where(fitting >= count, (gpus * (times > 0)).sum(axis=1), 0)
    return slots, one
