"""Packs all placed workloads on fewer nodes, as if all could migrate. Pure.

Workloads with GPUs, or with preferences that depend on other workloads, stay, and their nodes count as used. The rest is packed
anew by several orders, and then nodes are emptied one after the other: their workloads are spread over the others and exchanged
until no node overflows (``local_search``). The sum of all requests is a lower bound of nodes; where that isn't reached, and the
solver is installed, the solver continues.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from weft.contracts.policy import RESOURCES, Flags, Request, Whole
from weft.scheduler.constraint.filters import FREE_CAPACITY
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.packing import solver
from weft.scheduler.packing.local_search import Problem, find_solution, is_solution

STEPS = 3000  # exchanges for one node to be emptied, at most
STEPS_EACH = 50  # for each workload
LOOKS = 1_000_000  # workloads checked in all steps for one node
FEWEST_STEPS = 400
ALL_STEPS = 60_000
TRIES = 4  # nodes that can't be emptied, before it ends


class Placed(msgspec.Struct, frozen=True):
    """A placed workload with the ``row`` of its node."""

    request: Request
    row: int


class Repacking(msgspec.Struct, frozen=True):
    rows: list[int]  # of each workload's node then
    nodes_used: int
    least: int  # a lower bound of nodes
    proven: bool  # fewer are impossible


def repack(engine: Engine, placed: Sequence[Placed], *, solver_seconds: float = 10.0) -> Repacking:
    """Fewer nodes for what is placed, all of which the engine's snapshot counts; ``solver_seconds`` 0: by search alone."""
    rows = np.asarray([each.row for each in placed], dtype=np.int64)
    movable = np.asarray([_is_movable(engine, each.request) for each in placed], dtype=np.bool_)
    items = np.flatnonzero(movable)
    problem, used = _describe(engine, [placed[int(i)] for i in items], rows[items])
    before = rows[items]
    if items.size and not is_solution(problem, before):
        items = items[:0]  # more is allocated than there is: there is no valid start
    if not items.size:
        count = len(set(rows.tolist()) | set(np.flatnonzero(used).tolist()))
        return Repacking(rows.tolist(), count, count, False)
    least = _find_least(problem, used)
    bins, proven = before, False
    for order in _orders(problem):
        packed = _pack(problem, used, order)
        if packed is not None and _count(packed, used) < _count(bins, used):
            bins = packed
    bins = _empty_nodes(problem, used, bins, least)
    if _count(bins, used) > least and solver_seconds > 0:
        some, narrowed = _narrow(problem, used, bins)
        if solver.can_solve(narrowed):
            hint = np.searchsorted(some, bins)
            answer = solver.find_fewest(narrowed, used[some], hint, solver_seconds)
            if answer.bins is not None:
                bins, proven = some[answer.bins], answer.proven and _is_alike(problem, used)
    rows[items] = bins
    count = _count(bins, used)
    return Repacking(rows.tolist(), count, count if proven else least, proven or count == least)


def _is_movable(engine: Engine, request: Request) -> bool:
    """Whether its nodes follow from facts alone, and capacity from sums."""
    if request.gpus is not None or request.groups:
        return False
    return all(f is FREE_CAPACITY or f.reads == "facts" or f.asks(request) is None for f in engine.filters)


def _describe(engine: Engine, placed: Sequence[Placed], rows: Whole) -> tuple[Problem, Flags]:
    """These workloads as items and all nodes as bins; and which bins others use."""
    snapshot = engine.snapshot
    extras = sorted({name for each in placed for name, _ in each.request.extras})
    wanted = np.zeros((len(placed), len(RESOURCES) + len(extras)), dtype=np.int64)
    for item, each in enumerate(placed):
        wanted[item, : len(RESOURCES)] = each.request.amounts
        for name, amount in each.request.extras:
            wanted[item, len(RESOURCES) + extras.index(name)] = amount
    given = [*snapshot.capacity, *(snapshot.extra(name)[0] for name in extras)]
    taken = [*snapshot.allocated, *(snapshot.extra(name)[1] for name in extras)]
    others = np.stack(taken, axis=1).astype(np.int64)
    np.subtract.at(others, rows, wanted)
    free = np.stack(given, axis=1).astype(np.int64) - others
    allowed = np.empty((len(placed), len(snapshot)), dtype=np.bool_)
    kept: dict[object, Flags] = {}
    for item, each in enumerate(placed):
        asked = tuple(filter_.asks(each.request) for filter_ in engine.filters if filter_ is not FREE_CAPACITY)
        if asked not in kept:
            fits = np.ones(len(snapshot), dtype=np.bool_)
            for filter_ in engine.filters:
                if filter_ is not FREE_CAPACITY and filter_.asks(each.request) is not None:
                    fits = fits & filter_.fits(snapshot, each.request)
            kept[asked] = fits
        allowed[item] = kept[asked]
    allowed[np.arange(len(placed)), rows] = True  # it may stay, on a cordoned node too
    return Problem(wanted, free, allowed), np.any(others > 0, axis=1)


def _orders(problem: Problem) -> list[Whole]:
    """Large ones first, as sum, by their scarcest resource, and by each."""
    shares = problem.wanted / np.maximum(problem.free.max(axis=0), 1)
    keys = [shares.sum(axis=1), shares.max(axis=1), *shares.T]
    return [np.argsort(-key, kind="stable") for key in keys]


def _pack(problem: Problem, used: Flags, order: Whole) -> Whole | None:
    """Each to the first that fits: of those in use, else the largest."""
    size = (problem.free / np.maximum(problem.free.max(axis=0), 1)).sum(axis=1)
    sequence = np.lexsort((np.arange(len(size)), -size, ~used))
    free = problem.free[sequence].copy()
    allowed = problem.allowed[:, sequence]
    bins = np.empty(len(order), dtype=np.int64)
    for item in order:
        fits = allowed[item] & np.all(free >= problem.wanted[item], axis=1)
        place = int(fits.argmax())
        if not fits[place]:
            return None
        free[place] -= problem.wanted[item]
        bins[item] = sequence[place]
    return bins


def _empty_nodes(problem: Problem, used: Flags, bins: Whole, least: int) -> Whole:
    """Empty one node after the other, or two for a larger one, for as long as it can be done."""
    steps = ALL_STEPS
    going = True
    while going and steps > 0 and _count(bins, used) > least:
        going = False
        for number, (closed, opened) in enumerate(_list_exchanges(problem, used, bins)):
            found = _empty(problem, used, bins, closed, opened, seed=number)
            steps -= _steps(len(bins)) if found is None else 100
            if found is not None:
                bins, going = found, True
            if found is not None or steps <= 0:
                break
    return bins


def _list_exchanges(problem: Problem, used: Flags, bins: Whole) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the nodes to empty, those with least first, and the ones to begin for them."""
    size = (problem.free / np.maximum(problem.free.max(axis=0), 1)).sum(axis=1)
    taken = np.bincount(bins, minlength=len(used)) > 0
    closable = np.flatnonzero(taken & ~used)
    load = [_share(problem, bins, int(node)) for node in closable]
    for node in closable[np.argsort(load, kind="stable")][:TRIES]:
        yield [int(node)], []
    unused = np.flatnonzero(~taken & ~used)
    if not unused.size or len(closable) < 2:
        return
    largest = int(unused[size[unused].argmax()])
    small = [int(node) for node in closable[np.argsort(size[closable], kind="stable")] if size[node] < size[largest]]
    for one, other in itertools.islice(itertools.combinations(small, 2), TRIES):
        yield [one, other], [largest]


def _empty(
    problem: Problem, used: Flags, bins: Whole, closed: Sequence[int], opened: Sequence[int], seed: int
) -> Whole | None:
    some, narrowed = _narrow(problem, used, bins, closed, opened)
    leaving = np.flatnonzero(np.isin(bins, closed))
    if not some.size or not narrowed.allowed.any(axis=1).all():
        return None
    start = np.searchsorted(some, bins).clip(max=len(some) - 1)
    begun = np.flatnonzero(np.isin(some, opened))
    draw = np.random.default_rng(seed)
    for item in leaving:
        places = np.flatnonzero(narrowed.allowed[item])
        first = [place for place in begun if narrowed.allowed[item, place]]
        start[item] = first[0] if first else places[draw.integers(places.size)]
    found = find_solution(narrowed, start, _steps(len(bins)), seed)
    return None if found is None else some[found]


def _steps(items: int) -> int:
    return min(STEPS, STEPS_EACH * items, max(FEWEST_STEPS, LOOKS // items))


def _narrow(
    problem: Problem, used: Flags, bins: Whole, closed: Sequence[int] = (), opened: Sequence[int] = ()
) -> tuple[Whole, Problem]:
    """The problem on the bins in use alone, without some and with others, and which these are."""
    taken = used.copy()
    taken[bins] = True
    taken[list(closed)] = False
    taken[list(opened)] = True
    some = np.flatnonzero(taken)
    return some, Problem(problem.wanted, problem.free[some], problem.allowed[:, some])


def _find_least(problem: Problem, used: Flags) -> int:
    """No fewer nodes than this can hold the sum of what is wanted: the used ones, and the largest of the others."""
    demand = problem.wanted.sum(axis=0) - problem.free[used].sum(axis=0)
    others = -np.sort(-problem.free[~used], axis=0).cumsum(axis=0)
    more = max((int(np.searchsorted(others[:, r], demand[r])) + 1) if demand[r] > 0 else 0 for r in range(len(demand)))
    return int(used.sum()) + more


def _is_alike(problem: Problem, used: Flags) -> bool:
    """Whether all unused bins are the same, so that any of them will do."""
    free, allowed = problem.free[~used], problem.allowed[:, ~used]
    return bool((free == free[:1]).all() and (allowed == allowed[:, :1]).all())


def _share(problem: Problem, bins: Whole, node: int) -> float:
    load = problem.wanted[bins == node].sum(axis=0)
    return float((load / np.maximum(problem.free[node], 1)).sum())


def _count(bins: Whole, used: Flags) -> int:
    taken = used.copy()
    taken[bins] = True
    return int(taken.sum())
