"""Free resources of nodes, before and after a request is placed there, and how much of it sorts of workloads could use. Pure.

Of a node's free thousandths of GPUs a sort can use ``several``: by as many of its kind as GPUs, cpu and memory allow; and
``one``: all devices that one of it could use. The first foresees a lack of cpu or memory, the second measures what isn't
fragmented, as in Weng et al., "Beware of Fragmentation" (ATC 2023). ``usable`` is a mean of both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from weft.contracts.policy import Codes, Flags, Outlook, Request, Sort, Table, Values, Whole
from weft.scheduler.table.devices import WHOLE, find_fitting

TIE = 1e-5  # the weight of what only decides between equals
_ONE, _SEVERAL = 0.75, 0.25  # of halves and quarters of the openb trace all are packed better than by either alone
_MOST = 1e9  # how many workloads that request nothing fit on a node
_BLOCK = 64  # nodes computed together: their numbers stay in the processor's cache
_HAIR = 1e-9  # 1 / 3 of 3 is 1


class Residue(msgspec.Struct, frozen=True, eq=False):
    """Free resources of nodes."""

    cpu: Values  # thousandths
    memory: Values  # bytes
    gpus: Codes  # rows × devices: thousandths, 0 where there is none
    models: Codes  # the code of the model of each node's first device

    def part(self, start: int, end: int) -> Residue:
        return Residue(self.cpu[start:end], self.memory[start:end], self.gpus[start:end], self.models[start:end])


class Sorts(msgspec.Struct, frozen=True, eq=False):
    """Sorts of workloads as columns; those that differ only in the models that they may have share one."""

    per_cpu: Values  # 1 over the request, NaN where that is 0
    per_memory: Values
    size: Values  # thousandths of GPUs
    shape: Whole  # which of the different requests for devices
    counts: Values  # by shape: how many devices
    times: Values  # by shape: how many shares a device gives by what is free of it (0–1000 thousandths)
    idle: Values  # by shape: what is free of a device that gives any
    column: Whole  # by sort
    models: list[tuple[str, ...]]  # by sort: those that it may have

    def allowed(self, words: Sequence[str]) -> Flags:
        """Sorts × codes of models (the last: none): whether it may have it."""
        flags = [[not names or word in names for word in (*words, "")] for names in self.models]
        return np.array(flags, dtype=np.bool_).reshape(len(self.models), len(words) + 1)

    def spread(self, weights: Values, words: Sequence[str]) -> Values:
        """Codes of models × columns: the sum of the weights of the sorts that may be there."""
        table = np.zeros((len(words) + 1, len(self.size)))
        np.add.at(table.T, self.column, self.allowed(words) * weights[:, None])
        return table


def read_sorts(sorts: Sequence[Sort]) -> Sorts:
    """The columns of ``sorts``."""
    asks = [(0, 0) if sort.gpus is None else (sort.gpus.count, sort.gpus.share) for sort in sorts]
    keys = [(sort.amounts[0], sort.amounts[1], ask) for sort, ask in zip(sorts, asks, strict=True)]
    columns = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    shapes = {shape: place for place, shape in enumerate(dict.fromkeys(asks))}
    return Sorts(
        per_cpu=np.array([1.0 / cpu if cpu else np.nan for cpu, _, _ in columns]),
        per_memory=np.array([1.0 / memory if memory else np.nan for _, memory, _ in columns]),
        size=np.array([float(count * share) for _, _, (count, share) in columns]),
        shape=np.array([shapes[shape] for _, _, shape in columns], dtype=np.int64),
        counts=np.array([max(1.0, count) for count, _ in shapes]),
        times=np.array([[free // share if share else 0.0 for free in range(WHOLE + 1)] for _, share in shapes]),
        idle=np.array([[free if 0 < share <= free else 0.0 for free in range(WHOLE + 1)] for _, share in shapes]),
        column=np.array([columns[key] for key in keys], dtype=np.int64),
        models=[() if sort.gpus is None else sort.gpus.models for sort in sorts],
    )


def or_alike(outlook: Outlook, table: Table, request: Request) -> Outlook:
    """The outlook; if it is empty, or has no sort with GPUs like this request: more requests like this one."""
    if any(sort.gpus is not None for sort in outlook.sorts) or (outlook.sorts and request.gpus is None):
        return outlook
    cpu, memory, disk = (max(1, int(amount)) for amount in table.capacity.max(axis=1))
    gpus = WHOLE * max(1, int((table.gpu_free >= 0).sum(axis=1).max()))
    return _alike(Sort(request.amounts, request.gpus, 1.0), (cpu, memory, disk, gpus))


@functools.lru_cache(maxsize=64)
def _alike(sort: Sort, largest: tuple[int, int, int, int]) -> Outlook:
    return Outlook((sort,), largest)


def find_residue(table: Table) -> Residue:
    """Free resources now."""
    free = np.maximum(table.capacity - table.allocated, 0)
    codes = table.gpu_model.codes
    first = codes[:, 0] if codes.shape[1] else np.full(len(table.names), -1, dtype=np.int32)
    return Residue(free[0].astype(np.float64), free[1].astype(np.float64), np.maximum(table.gpu_free, 0), first)


def find_rest(table: Table, request: Request, now: Residue) -> Residue:
    """Free resources with the request there, with devices as of ``choose_devices``. Meaningless for a node that it doesn't fit, but
    never negative."""
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


def find_usable(residue: Residue, sorts: Sorts) -> Values:
    """Nodes × columns: thousandths of GPUs that each could use there, were its models there (of one without GPUs: how many
    would fit)."""
    slots, one = _find_slots(residue.gpus, sorts)
    by_cpu = residue.cpu[:, None] * sorts.per_cpu
    memory = residue.memory[:, None] * sorts.per_memory
    np.fmin(by_cpu, memory, out=by_cpu)
    np.fmin(by_cpu, _MOST, out=by_cpu)
    by_cpu *= by_cpu >= 1.0 - _HAIR
    several = slots.take(sorts.shape, axis=1, out=memory)
    np.minimum(several, by_cpu, out=several)
    usable: Values = one.take(sorts.shape, axis=1)
    usable *= several > 0.0
    several *= sorts.size * (_SEVERAL / _ONE)
    usable += several
    usable *= _ONE
    bare = sorts.size == 0.0
    if bare.any():
        usable[:, bare] = by_cpu[:, bare]
    return usable


def find_unfragmented(residue: Residue, sorts: Sorts) -> Values:
    """Nodes × columns: thousandths of GPUs that aren't fragmented for each, as the paper counts: by GPUs and cpu."""
    _, one = _find_slots(residue.gpus, sorts)
    whole: Values = one.take(sorts.shape, axis=1)
    whole *= ~(residue.cpu[:, None] * sorts.per_cpu < 1.0 - _HAIR)
    return whole


def add_up(find: Callable[[Residue, Sorts], Values], residue: Residue, sorts: Sorts, weights: Values) -> Values:
    """Each node's sum of what ``find`` gives, by ``weights`` (codes of models × columns): the same whatever nodes lie beside it."""
    total = np.empty(len(residue.cpu))
    for start in range(0, len(total), _BLOCK):
        part = residue.part(start, start + _BLOCK)
        found = find(part, sorts)
        found *= weights[part.models]
        total[start : start + _BLOCK] = found.sum(axis=1)
    return total


def find_tightness(rest: Residue, outlook: Outlook) -> Values:
    """How little is free (0–100), by the largest node: decides between equals."""
    cpu, memory, _, gpus = outlook.largest
    left = rest.cpu / cpu + rest.memory / memory + rest.gpus.sum(axis=1) / gpus
    tightness: Values = 100.0 - np.minimum(left, 3.0) * (100.0 / 3.0)
    return tightness


def _find_slots(gpus: Codes, sorts: Sorts) -> tuple[Values, Values]:
    """Nodes × shapes: how many of each the devices could take, and the free thousandths of devices that one could be on."""
    slots = np.floor(sorts.times.take(gpus, axis=1).sum(axis=2).T / sorts.counts)
    one = sorts.idle.take(gpus, axis=1).sum(axis=2).T
    one *= slots >= 1.0
    return slots, one
