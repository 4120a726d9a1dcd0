"""One decision: filters say where a request may go, its policy says where best; ties go to the first by name.

Pure over a snapshot: the same snapshot, request, seed and history give the same answer. Requests that are equal share
their scores; after a placement only the rows that changed are looked at again. Scores are whole multiples of 1/SCALE, so
that how floats were added decides nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from weft.contracts.policy import (
    Column,
    Filter,
    Flags,
    Leaning,
    LoadPolicy,
    Occasion,
    Outlook,
    Policy,
    Request,
    Table,
    Values,
)
from weft.scheduler.devices import choose_devices
from weft.scheduler.facts import NO_LOAD, Load
from weft.scheduler.filters import FILTERS, ROOM
from weft.scheduler.leanings import LEANINGS
from weft.scheduler.masks import Masks
from weft.scheduler.outlook import Demand
from weft.scheduler.policies import POLICIES
from weft.scheduler.policies.combined import looks_ahead
from weft.scheduler.ranking import Ranking
from weft.scheduler.rows import Rows
from weft.scheduler.shelves import NOT_FOUND
from weft.scheduler.slopes import FAR, SCALE, Slopes, Weights
from weft.scheduler.snapshot import Snapshot

REFUSED = -1.0
_NEVER = -np.inf
_CLASSES_KEPT = 2048
_ENTRIES_KEPT = 4_000_000  # of all rankings together
_LEAST_RANKED = 1024  # of one


class _Class(Protocol):
    """What is kept for all requests that are equal."""

    def best(self, uid: str) -> int | None: ...

    def scores(self, uid: str) -> Values:
        """Of every row, times SCALE; _NEVER where a filter refuses. Not to be changed."""


class Engine:
    """Decides over ``snapshot``. ``last`` is the node chosen most recently; ``demand`` is where policies that look ahead have
    their outlook from."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        seed: int = 0,
        filters: Sequence[Filter] = FILTERS,
        leanings: Sequence[Leaning] = LEANINGS,
        policies: Mapping[str, Policy] = POLICIES,
        demand: Demand | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.filters = filters
        self._leanings = leanings
        self.last: str | None = None
        self.outlook = Outlook()
        self._demand = demand
        self._linear: dict[str, LoadPolicy | None] = {}
        self._ahead: dict[str, bool] = {}  # by strategy: whether it looks ahead
        self._seed = seed
        self._policies = policies
        self._masks = Masks(snapshot, filters)
        self._slopes: dict[Weights, Slopes] = {}
        self._classes: OrderedDict[Request, _Class] = OrderedDict()

    def expect(self, outlook: Outlook) -> None:
        """Go by this outlook from now on."""
        self.outlook = outlook
        for request in [r for r in self._classes if self._looks_ahead(r.strategy)]:
            del self._classes[request]

    def choose(self, request: Request, uid: str) -> int | None:
        """The row of the best node for the request of workload ``uid``, or None when none fits."""
        self.snapshot.settle()
        if self._demand is not None and self._looks_ahead(request.strategy):
            outlook = self._demand.renew(self.snapshot)
            if outlook is not None:
                self.expect(outlook)
        return self._class(request).best(uid)

    def place(self, request: Request, uid: str, allocation: str) -> int | None:
        """Choose, and count the allocation of that name as there."""
        row = self.choose(request, uid)
        if row is not None:
            snapshot = self.snapshot
            snapshot.put_allocation(allocation, snapshot.uids[row], request.amounts, self.load(request, row))
            self.last = snapshot.names[row]
        return row

    def load(self, request: Request, row: int) -> Load:
        """What the request takes of node ``row`` beside its amounts: which devices too."""
        if request.gpus is None and not request.extras and not request.groups:
            return NO_LOAD
        gpus = () if request.gpus is None else choose_devices(self.snapshot, request.gpus, row)
        return Load(request.extras, gpus, request.groups)

    def scores(self, request: Request, uid: str) -> Values:
        """Every node's score (0–100), REFUSED where a filter refuses."""
        self.snapshot.settle()
        scores = self._class(request).scores(uid)
        return np.where(scores == _NEVER, REFUSED, scores / SCALE)

    def terms(self, request: Request, uid: str, rows: Sequence[int]) -> list[Column]:
        """The terms that make up the scores of these rows."""
        if self._is_wide(request):
            columns = self._columns(self.snapshot, request, uid)
            return [Column(c.name, c.weight, c.values[list(rows)]) for c in columns]
        return self._columns(Rows(self.snapshot, rows), request, uid)

    def refusers(self, request: Request) -> list[tuple[Filter, Flags]]:
        """The filters that refuse any node, and of each the nodes it is the first to refuse."""
        self.snapshot.settle()
        return self._masks.refusers(request)

    def may_fit(self, request: Request, uids: Sequence[str]) -> bool:
        """Whether any of these nodes passes all filters."""
        rows = [index for uid in uids if (index := self.snapshot.index_of(uid)) is not None]
        if not rows:
            return False
        moving = self._masks.moving(request)
        if any(filter_.reads == "fabric" for filter_ in moving):
            return bool(self.fits(request)[rows].any())
        some = Rows(self.snapshot, rows)
        fits = self._masks.steady(request)[rows]
        for filter_ in moving:
            fits &= filter_.fits(some, request)
        return bool(fits.any())

    def fits(self, request: Request) -> Flags:
        """Where it fits now."""
        fits = self._masks.steady(request).copy()
        for filter_ in self._masks.moving(request):
            fits &= filter_.fits(self.snapshot, request)
        return fits

    def score(self, table: Table, request: Request, uid: str) -> Values:
        """What its policy and its leanings make of each node, times SCALE, whatever filters say."""
        columns = self._columns(table, request, uid)
        total = columns[0].weight * columns[0].values
        for column in columns[1:]:
            total = total + column.weight * column.values
        return np.rint(total * SCALE)

    def _columns(self, table: Table, request: Request, uid: str) -> list[Column]:
        occasion = Occasion(self._seed, uid, self.last, self.outlook)
        columns = self._policies[request.strategy].terms(table, request, occasion)
        leant = [column for leaning in self._ask(request) for column in leaning.terms(table, request)]
        if not leant:
            return columns
        total = 1.0 + sum(column.weight for column in leant)  # the strategy counts 1, and the score stays within 0–100
        return [Column(column.name, column.weight / total, column.values) for column in (*columns, *leant)]

    def _ask(self, request: Request) -> list[Leaning]:
        """The leanings that have something to say to it."""
        return [leaning for leaning in self._leanings if leaning.asks(request) is not None]

    def _looks_ahead(self, strategy: str) -> bool:
        found = self._ahead.get(strategy)
        if found is None:
            found = self._ahead[strategy] = looks_ahead(self._policies[strategy])
        return found

    def _is_wide(self, request: Request) -> bool:
        """Whether other nodes bear on a node's score."""
        reads = self._policies[request.strategy].reads
        return (
            reads == "fabric"
            or (reads == "outlook" and not self.outlook.lasts(request))
            or any(leaning.reads == "fabric" for leaning in self._ask(request))
        )

    def _class(self, request: Request) -> _Class:
        found = self._classes.get(request)
        if found is not None:
            self._classes.move_to_end(request)
            return found
        found = self._classes[request] = self._begin(request)
        if len(self._classes) > _CLASSES_KEPT:
            self._classes.popitem(last=False)
        return found

    def _begin(self, request: Request) -> _Class:
        moving = self._masks.moving(request)
        linear = self._find_linear(request.strategy)
        weights = linear.load(request) if linear is not None and not self._ask(request) else None
        slopes = None if weights is None else self._find_slopes(weights)
        if slopes is not None and request.gpus is None and (request.near or request.apart or request.spread):
            return _Swept(self, slopes, request)
        if self._is_wide(request) or any(filter_.reads == "fabric" for filter_ in moving):
            return _Anew(self, request)
        if slopes is None or moving != [ROOM] or request.extras or request.gpus is not None:
            return _ByRow(self, request, moving)
        most = max(_LEAST_RANKED, _ENTRIES_KEPT // max(64, len(self._classes)))
        return _ByLoad(self.snapshot, self._masks, slopes, request, most)

    def _find_linear(self, strategy: str) -> LoadPolicy | None:
        """The strategy's policy if its score may be linear in load."""
        if strategy not in self._linear:
            policy = self._policies[strategy]
            self._linear[strategy] = policy if isinstance(policy, LoadPolicy) else None
        return self._linear[strategy]

    def _find_slopes(self, weights: Weights) -> Slopes:
        slopes = self._slopes.get(weights)
        if slopes is None:
            slopes = self._slopes[weights] = Slopes(self.snapshot, weights)
        return slopes


class _Swept:
    """The score is linear in the node's load, but others bear on where it fits: looked at as a whole each time."""

    def __init__(self, engine: Engine, slopes: Slopes, request: Request) -> None:
        self._engine = engine
        self._slopes = slopes
        self._request = request

    def best(self, uid: str) -> int | None:
        return _best(self.scores(uid))

    def scores(self, uid: str) -> Values:
        self._slopes.update()
        scores = self._slopes.scores(self._request.amounts)
        np.putmask(scores, ~self._engine.fits(self._request), _NEVER)
        return scores


class _Anew:
    """Other nodes bear on it, or chance, or the past: nothing can be kept."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine = engine
        self._request = request

    def best(self, uid: str) -> int | None:
        return _best(self.scores(uid))

    def scores(self, uid: str) -> Values:
        engine, request = self._engine, self._request
        return np.where(engine.fits(request), engine.score(engine.snapshot, request, uid), _NEVER)


class _ByRow:
    """Each node's score follows from its own row: only rows that changed are looked at again."""

    def __init__(self, engine: Engine, request: Request, moving: Sequence[Filter]) -> None:
        self._engine = engine
        self._request = request
        self._moving = moving
        self._epochs = (-1, -1)
        self._position = 0
        self._scores: Values = np.zeros(0)

    def best(self, uid: str) -> int | None:
        return _best(self.scores(uid))

    def scores(self, uid: str) -> Values:
        engine, snapshot = self._engine, self._engine.snapshot
        epochs = (snapshot.epoch, snapshot.facts_epoch)
        anew = self._epochs != epochs
        rows = [] if anew else list(dict.fromkeys(snapshot.log[self._position :]))
        if anew or len(rows) * 4 > len(snapshot):
            scores = engine.score(snapshot, self._request, uid)
            self._scores = np.where(engine.fits(self._request), scores, _NEVER)
        elif rows:
            some = Rows(snapshot, rows)
            fits = engine._masks.steady(self._request)[rows]
            for filter_ in self._moving:
                fits &= filter_.fits(some, self._request)
            self._scores[rows] = np.where(fits, engine.score(some, self._request, uid), _NEVER)
        self._epochs, self._position = epochs, len(snapshot.log)
        return self._scores


class _ByLoad:
    """The score is linear in the node's load, and nothing but room changes: looked at as a whole, or ranked once it comes
    up so often that little changes in between."""

    __slots__ = (
        "_amounts",
        "_deltas",
        "_epochs",
        "_is_far",
        "_mask",
        "_masks",
        "_most",
        "_near",
        "_ranking",
        "_request",
        "_seen",
        "_slopes",
        "_snapshot",
    )

    def __init__(self, snapshot: Snapshot, masks: Masks, slopes: Slopes, request: Request, most: int) -> None:
        self._snapshot = snapshot
        self._masks = masks
        self._slopes = slopes
        self._request = request
        self._amounts = request.amounts
        self._most = most
        self._epochs = (-1, -1)
        self._seen = 0  # how long the log was last time
        self._near = 0  # how often in a row it came up soon after
        self._ranking: Ranking | None = None

    def best(self, uid: str) -> int | None:
        snapshot, slopes = self._snapshot, self._slopes
        slopes.update()
        changed, self._seen = len(snapshot.log) - self._seen, len(snapshot.log)
        if self._epochs != (snapshot.epoch, snapshot.facts_epoch):
            self._epochs = (snapshot.epoch, snapshot.facts_epoch)
            self._mask = self._masks.steady(self._request)
            self._near, self._ranking = 0, None
            self._deltas: list[int] = []
            self._is_far = False
        shelves = None if self._is_far else slopes.sort(self._mask)
        if shelves is not None:
            if not self._deltas:
                self._deltas = slopes.list_deltas(self._amounts)
            row = shelves.find(self._deltas, self._amounts, snapshot.cells)
            if row != NOT_FOUND:
                return row
            self._is_far = True  # too many that are emptier lack something
        if changed > FAR + len(snapshot) // 500:  # to look at each of them again would take longer than at all anew
            self._near, self._ranking = 0, None
        elif self._ranking is not None:
            return self._ranking.best()
        else:
            self._near += 1
            if self._near > 2:
                self._ranking = Ranking(snapshot, slopes, self._amounts, self._mask, self._most)
                return self._ranking.best()
        return _best(self._score())

    def scores(self, uid: str) -> Values:
        self._slopes.update()
        self._mask = self._masks.steady(self._request)
        return self._score()

    def _score(self) -> Values:
        cpu, memory, disk = self._amounts
        free_cpu, free_memory, free_disk = self._snapshot.free
        fits = free_cpu >= cpu
        fits &= free_memory >= memory
        fits &= free_disk >= disk
        fits &= self._mask
        scores = self._slopes.scores(self._amounts)
        np.putmask(scores, ~fits, _NEVER)
        return scores


def _best(scores: Values) -> int | None:
    """The first of the best, None where all are refused."""
    if not scores.size:
        return None
    row = int(scores.argmax())
    return row if scores[row] != _NEVER else None
