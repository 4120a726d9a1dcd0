"""A gang's places: for all of its members or none. Pure: trials in the snapshot are removed again.

Every trial passes the engine's own filters, with the members before it counted, so affinity, spread and devices hold among
members as among workloads. First come orders with each policy's own choice; then a backtracking search; then sums alone, by
local search and, where it is installed, by the solver, whose answers are checked by the filters. That there is no answer is
proven only by a member that fits nowhere by itself, by sums, by an exhausted search, or by the solver; otherwise the refusal says
that it isn't proven.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from weft.contracts.policy import RESOURCES, Flags, Request, Whole
from weft.scheduler.constraint.affinity import Apart
from weft.scheduler.constraint.filters import FREE_CAPACITY
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.packing import solver
from weft.scheduler.packing.local_search import Problem, find_solution
from weft.scheduler.table.trial import Trial

TURNS, FEWEST_TURNS = 400, 40  # places tried by the backtracking search
LOOKS = 400_000  # nodes checked by it in all its turns
STEPS = 1500
SOLVER_SECONDS = 0.5
_TRIAL = "gang/"  # begins the names of trial allocations: no key of an object begins so


class GangMember(msgspec.Struct, frozen=True):
    """A workload of the gang."""

    request: Request
    uid: str
    name: str  # vm/web-1


class Joint(msgspec.Struct, frozen=True):
    rows: list[int] | None  # a place for each member, or none for all
    order: list[int]
    lacking: int = -1  # the member without a place when ``rest`` are placed
    rest: dict[int, int] = {}  # member → row
    proven: bool = False  # there is no answer at all
    searched: bool = False


class Seats:
    """Members that are counted in the snapshot for a trial."""

    def __init__(self, engine: Engine, members: Sequence[GangMember], trial: Trial) -> None:
        self.rows: dict[int, int] = {}
        self._engine = engine
        self._members = members
        self._trial = trial

    def put(self, member: int, row: int) -> None:
        engine, request = self._engine, self._members[member].request
        snapshot = engine.snapshot
        load = engine.load(request, row)
        if load.groups:
            load = msgspec.structs.replace(load, workload=self._members[member].name)
        self._trial.put(f"{_TRIAL}{member}", snapshot.uids[row], request.amounts, load)
        self.rows[member] = row

    def drop(self, member: int) -> None:
        del self.rows[member]
        self._trial.revert(f"{_TRIAL}{member}")

    def clear(self) -> None:
        for member in list(self.rows):
            self.drop(member)


def find_places(
    engine: Engine, members: Sequence[GangMember], *, search: bool = True, solver_seconds: float = SOLVER_SECONDS
) -> Joint:
    """A place for each member, with the order in which they must be counted. Without ``search`` it takes about as long as the
    members' own decisions."""
    engine.snapshot.settle()
    with engine.snapshot.trial() as trial:
        seats = Seats(engine, members, trial)
        found = _try_orders(engine, members, seats)
        if found.rows is not None or found.proven or not search:
            return found
        return msgspec.structs.replace(_search(engine, members, seats, found, solver_seconds), searched=True)


def _try_orders(engine: Engine, members: Sequence[GangMember], seats: Seats) -> Joint:
    fits = [engine.fits(member.request) for member in members]
    best = Joint(None, [], 0)
    for order in _orders(engine, members, fits):
        stuck = _try_order(engine, members, seats, order)
        if stuck is None:
            return _answer(seats, order)
        if len(seats.rows) >= len(best.rest):
            best = Joint(None, order, stuck, dict(seats.rows))
        seats.clear()
    alone = next(
        (i for i, m in enumerate(members) if not fits[i].any() and not _depends_on_others(engine, m.request)), None
    )
    if alone is not None:
        return Joint(None, best.order, alone, {}, proven=True)
    return best


def _search(engine: Engine, members: Sequence[GangMember], seats: Seats, best: Joint, solver_seconds: float) -> Joint:
    problem, nodes = _relax(engine, members)
    if not problem.allowed.any(axis=1).all() or (problem.wanted.sum(axis=0) > problem.free.sum(axis=0)).any():
        return msgspec.structs.replace(best, proven=True)
    order = sorted(range(len(members)), key=lambda i: int(engine.fits(members[i].request).sum()))
    turns = [max(FEWEST_TURNS, min(TURNS, LOOKS // len(engine.snapshot)))]
    if _turn_back(engine, members, seats, order, turns):
        return _answer(seats, order)
    seats.clear()
    if turns[0] > 0 and all(_is_plain(engine, member.request) for member in members):
        return msgspec.structs.replace(best, proven=True)  # everything was tried
    start = problem.allowed.argmax(axis=1)
    bins = find_solution(problem, start, min(STEPS, 100 * len(members)))
    if bins is not None and _try_rows(engine, members, seats, nodes[bins]):
        return _answer(seats, list(seats.rows))
    seats.clear()
    if bins is None and solver_seconds > 0 and solver.can_solve(problem):
        answer = solver.find_any(problem, [], solver_seconds)
        if answer.bins is not None and _try_rows(engine, members, seats, nodes[answer.bins]):
            return _answer(seats, list(seats.rows))
        return msgspec.structs.replace(best, proven=answer.bins is None and answer.proven)
    return best


def _answer(seats: Seats, order: Sequence[int]) -> Joint:
    return Joint([seats.rows[member] for member in range(len(seats.rows))], list(order))


def _depends_on_others(engine: Engine, request: Request) -> bool:
    """Whether the nodes that fit depend on where others are."""
    return any(f.reads == "fabric" and f.asks(request) is not None for f in engine.filters)


def _is_plain(engine: Engine, request: Request) -> bool:
    """Whether the order of counting doesn't matter: members only take capacity, and no device is chosen."""
    dynamic = (f for f in engine.filters if f.reads != "facts" and f.asks(request) is not None)
    return request.gpus is None and all(f is FREE_CAPACITY or isinstance(f, Apart) for f in dynamic)


def _orders(engine: Engine, members: Sequence[GangMember], fits: Sequence[Flags]) -> Iterator[list[int]]:
    """Orders to try: as they came; those with the fewest nodes first; large ones first."""
    capacity = np.maximum(engine.snapshot.capacity.max(axis=1, initial=1), 1)
    size = [max(np.asarray(m.request.amounts) / capacity) for m in members]
    order = list(range(len(members)))
    yield order
    yield sorted(order, key=lambda i: (int(fits[i].sum()), -size[i]))
    yield sorted(order, key=lambda i: -size[i])


def _try_order(engine: Engine, members: Sequence[GangMember], seats: Seats, order: Sequence[int]) -> int | None:
    """Place each where its policy ranks best; the first member without a place, None if all have one."""
    for member in order:
        row = engine.choose(members[member].request, members[member].uid)
        if row is None:
            return member
        seats.put(member, row)
    return None


def _turn_back(
    engine: Engine, members: Sequence[GangMember], seats: Seats, order: Sequence[int], turns: list[int]
) -> bool:
    """Search depth first, nodes with least free first, so that large holes stay; ``turns[0]`` places may be tried."""
    if not order:
        return True
    member, snapshot = order[0], engine.snapshot
    rows = np.flatnonzero(engine.fits(members[member].request))
    left = (snapshot.free[:, rows] / np.maximum(snapshot.capacity[:, rows], 1)).sum(axis=0)
    for row in rows[np.argsort(left, kind="stable")]:
        if turns[0] <= 0:
            return False
        turns[0] -= 1
        seats.put(member, int(row))
        if _turn_back(engine, members, seats, order[1:], turns):
            return True
        seats.drop(member)
    return False


def _try_rows(engine: Engine, members: Sequence[GangMember], seats: Seats, rows: Whole) -> bool:
    """Whether the filters accept these places, in some order of the members."""
    waiting = list(range(len(members)))
    while waiting:
        member = next((i for i in waiting if engine.fits(members[i].request)[rows[i]]), None)
        if member is None:
            return False
        seats.put(member, int(rows[member]))
        waiting.remove(member)
    return True


def _relax(engine: Engine, members: Sequence[GangMember]) -> tuple[Problem, Whole]:
    """The gang as items and nodes as bins, by sums and by facts of nodes alone: without an answer here there is none."""
    snapshot = engine.snapshot
    extras = sorted({name for member in members for name, _ in member.request.extras})
    wanted = np.zeros((len(members), len(RESOURCES) + len(extras) + 1), dtype=np.int64)
    allowed = np.ones((len(members), len(snapshot)), dtype=np.bool_)
    for item, member in enumerate(members):
        request = member.request
        wanted[item, : len(RESOURCES)] = request.amounts
        for name, amount in request.extras:
            wanted[item, len(RESOURCES) + extras.index(name)] = amount
        if request.gpus is not None:
            wanted[item, -1] = request.gpus.count * request.gpus.share
        for filter_ in engine.filters:
            if (filter_ is FREE_CAPACITY or filter_.reads == "facts") and filter_.asks(request) is not None:
                allowed[item] &= filter_.fits(snapshot, request)
    free = [*snapshot.free, *(np.subtract(*snapshot.extra(name)) for name in extras)]
    free.append(np.maximum(snapshot.gpu_free, 0).sum(axis=1))
    nodes = np.flatnonzero(allowed.any(axis=0))
    return Problem(wanted, np.stack(free, axis=1).astype(np.int64)[nodes], allowed[:, nodes]), nodes
