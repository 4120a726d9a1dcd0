"""Choose the queued leases that start now: one pass over the queue. The scheduler and ``weft simulate leases`` run this same code,
the one on nodes (``scheduler/placement/queued.py``), the other on the processors of a log.

EASY backfilling (Lifka, "The ANL/IBM SP Scheduling System", JSSPP 1995): the first of the queue that doesn't fit holds a
reservation at the earliest moment when what runs has to be over, and others may start before it if they leave that alone. The
models differ in the order of the queue, in the order in which gaps are filled, and in how long a lease is believed to run:

- ``easy``: by arrival, both; as long as requested.
- ``easy-sjbf``: gaps by shortest request first.
- ``easy-sjbf-clairvoyant``: the same with the true durations, which no scheduler knows: a bound for comparison.
- ``weft``: by expected slowdown, (waited + predicted) / predicted, as in the Maui scheduler (Jackson, Snell and Clement, JSSPP
  2001), as if all had waited ``HEAD_START_SECONDS`` longer, which favours the short ones among new ones, and a little less for
  much of the capacity; gaps by shortest prediction. What has waited longer than ``GUARD_SECONDS`` comes first, by arrival, and
  its reservation is kept strictly: behind it only requests count. So nothing waits for ever.

Levels (priorities) come before all this but the guard; of one level the next one is of the project with the smallest share.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Protocol

import msgspec
import numpy as np

from weft.contracts.policy import Flags, Values, Whole
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.lease.prediction import RunTimes

GUARD_SECONDS = 96 * 3600.0
HEAD_START_SECONDS = 2 * 3600.0
_SIZE_EXPONENT = 0.25
SHORTEST_SECONDS = 10.0  # what runs shorter counts as this long in slowdowns
MOST_TRIED = 200  # that may fill gaps and don't start, in one pass
MOST_HOPELESS = 40  # of the first ones, in one pass: nothing says when they start
MAX_RETRIES_PER_PASS = 10  # of those, in the next passes
_ARRIVAL, _REQUESTED, _PREDICTED, _WEIGHT, _LEVEL, _PROJECT, _SEQUENCE, _CPU, _MEMORY, _SHAPE = range(10)


class Queued(msgspec.Struct, eq=False):
    """A lease that waits."""

    id: str
    owner: Hashable  # whose last leases tell how long it may run
    arrival: float  # seconds on the clock of the caller
    amounts: tuple[float, float]  # of two resources: what a node must have for it at least
    requested: float  # seconds; it is ended after these
    size: float = 1.0  # how much of the capacity it takes in all
    level: float = 0.0  # higher comes first
    project: str = ""
    keys: tuple[str, ...] = ()  # of its workloads
    predicted: float = 0.0  # seconds; the queue fills it in

    @property
    def shape(self) -> Hashable:
        """Equal for those that fit on the same nodes, if they are as long; None: like no other."""
        return None


Ranks = tuple[Values, Values]  # by row: the level, and the place in it


class Model(msgspec.Struct, frozen=True):
    """How the queue is ordered, and what a gap must hold."""

    by_slowdown: bool = False  # the queue's order; else by arrival
    shortest_first: bool = False  # in gaps; else as in the queue
    learns: bool = False  # from what an owner's last leases took
    guard_seconds: float = math.inf  # after that long a wait arrival alone counts
    all_ends: bool = False  # the reservation of the first one has all that ends at its moment, not only what it needs


WEFT = Model(by_slowdown=True, shortest_first=True, learns=True, guard_seconds=GUARD_SECONDS, all_ends=True)
MODELS = {
    "easy": Model(),
    "easy-sjbf": Model(shortest_first=True),
    "easy-sjbf-clairvoyant": Model(shortest_first=True),
    "weft": WEFT,
}


class Capacity(Protocol):
    """Capacity on which leases start. Each method counts the lease if it answers True."""

    def start(self, lease: Queued) -> bool:
        """Whether it fits now for all that it requested."""

    def hold(self, lease: Queued) -> bool:
        """Reserve the first time at which it fits, whatever else starts; False: no such time is known."""

    def may_ever_fit(self, amounts: Values) -> Flags:
        """Flags of the leases (columns of ``amounts``) that may fit at some time: none of the others does."""

    def may_fit(self, amounts: Values, ends: Values) -> Flags:
        """Flags of the leases (columns of ``amounts``, over at ``ends``) that may fit beside what is reserved: none of the others
        does."""

    def start_beside(self, lease: Queued, seconds: float) -> bool:
        """Whether it fits now for all that it requested, and beside what is reserved for ``seconds``."""


class Shares(Protocol):
    """How much each project has, by its weight."""

    def weighted(self, project: str) -> float: ...

    def suppose(self, key: str) -> None:
        """Count a workload as if it had its place."""


class Passed(msgspec.Struct, frozen=True):
    """A lease that started while another came first: at which moment, and how long it was believed to run."""

    key: str  # of its workload
    at: float
    seconds: float


class LeaseQueue:
    """The leases that wait, and what is known of their owners."""

    def __init__(self, model: Model = WEFT) -> None:
        self.model = model
        self.run_times = RunTimes()
        self.first: Queued | None = None  # that holds a reservation since the last pass
        self.held: list[CalendarEntry] = []  # what that reservation takes of nodes
        self.kept: dict[str, CalendarEntry] = {}  # what of it counts against everything else, by name
        self.passed: dict[str, Passed] = {}  # by the lease that came first: the last one that started before it
        self.unfinished = False  # the last pass didn't find who comes first; the next one goes on
        # Shapes of leases that fit nowhere at any time, by the last pass that tried them: the least seconds that were requested.
        # Passes leave them out but for a few in turn, so many of them don't keep a pass from the one that comes first.
        self._hopeless: dict[float, float] = {}
        self._leases: list[Queued] = []  # by row
        self._rows: dict[str, int] = {}
        self._of_owner: dict[Hashable, dict[str, Queued]] = {}
        self._projects: dict[str, int] = {}
        self._shapes: dict[Hashable, list[int]] = {}  # of each its number, and how many have it
        self._sequence = 0
        self._table = np.zeros((10, 64))

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._rows

    def get(self, id_: str) -> Queued | None:
        row = self._rows.get(id_)
        return None if row is None else self._leases[row]

    @property
    def hopeless(self) -> int:
        """How many that fit nowhere are tried a few in a pass; equal ones count as one."""
        return len(self._hopeless)

    @property
    def has_projects(self) -> bool:
        """Whether leases of several projects have waited here."""
        return len(self._projects) > 1

    def list_above(self, level: float) -> list[Queued]:
        """Those of higher levels."""
        levels = self._table[_LEVEL, : len(self._leases)]
        return [self._leases[row] for row in np.flatnonzero(levels > level)]

    def put(self, lease: Queued) -> None:
        """Add a lease, or what has become of it."""
        self.drop(lease.id)
        self._sequence += 1
        row = self._rows[lease.id] = len(self._leases)
        self._leases.append(lease)
        self._of_owner.setdefault(lease.owner, {})[lease.id] = lease
        if row == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        self._predict(lease)
        project = self._projects.setdefault(lease.project, len(self._projects))
        weight = math.pow(lease.size, _SIZE_EXPONENT)
        shape = (
            [self._sequence, 0] if lease.shape is None else self._shapes.setdefault(lease.shape, [self._sequence, 0])
        )
        shape[1] += 1
        self._table[:, row] = (
            lease.arrival,
            lease.requested,
            lease.predicted,
            weight,
            lease.level,
            project,
            self._sequence,
            *lease.amounts,
            shape[0],
        )

    def drop(self, id_: str) -> None:
        row = self._rows.pop(id_, None)
        if row is None:
            return
        lease, last, number = self._leases[row], self._leases.pop(), float(self._table[_SHAPE, row])
        self.passed.pop(id_, None)
        if self.first is lease:
            self.first, self.held = None, []
        of_owner = self._of_owner[lease.owner]
        del of_owner[id_]
        if not of_owner:
            del self._of_owner[lease.owner]
        shape = self._shapes.get(lease.shape)
        if shape is not None:
            shape[1] -= 1
            if not shape[1]:
                del self._shapes[lease.shape]
        if shape is None or not shape[1]:
            self._hopeless.pop(number, None)
        if last is not lease:
            self._leases[row], self._rows[last.id] = last, row
            self._table[:, row] = self._table[:, len(self._leases)]

    def learn(self, owner: Hashable, seconds: float, *, extended: bool = False) -> None:
        """A lease of this owner has ended."""
        self.run_times.add(owner, seconds, extended=extended)
        for lease in self._of_owner.get(owner, {}).values():
            self._predict(lease)
            self._table[_PREDICTED, self._rows[lease.id]] = lease.predicted

    def order(self, now: float) -> list[Queued]:
        """All of them, the next one first, as long as shares don't count."""
        (levels, rank), table = self._read_ranks(now), self._table[:, : len(self._leases)]
        return [self._leases[row] for row in np.lexsort((table[_SEQUENCE], table[_ARRIVAL], rank, -levels))]

    def find_urgency(self, lease: Queued, now: float) -> float:
        """Its expected slowdown, a little less for much of the capacity; the largest comes first."""
        waited, size = now - lease.arrival + HEAD_START_SECONDS, math.pow(lease.size, _SIZE_EXPONENT)
        return (waited + lease.predicted) / (max(lease.predicted, SHORTEST_SECONDS) * size)

    def is_guarded(self, lease: Queued, now: float) -> bool:
        """Whether it has waited so long that it comes before all others."""
        return now - lease.arrival > self.model.guard_seconds

    def choose(self, capacity: Capacity, now: float, shares: Shares | None = None) -> list[Queued]:
        """Those that start at ``now``, in order; all stay in the queue. Without ``shares`` projects don't count. Another pass is
        due if this one is ``unfinished``: nothing has filled gaps then."""
        starts: list[Queued] = []
        self.first, self.held = None, []
        ranks, tried = self._read_ranks(now), 0
        rows = np.flatnonzero(capacity.may_ever_fit(self._table[_CPU : _MEMORY + 1, : len(self._leases)]))
        pool = _Pool(self, self._leave_out_hopeless(rows), ranks, ranks[1], shares)
        while tried < MOST_HOPELESS and (lease := pool.draw()) is not None:
            row = self._rows[lease.id]
            if capacity.start(lease):
                starts.append(lease)
                pool.suppose(lease)
            elif capacity.hold(lease):
                self.first = lease
                break
            else:
                # It comes first, but nothing says when: another one may hold a reservation. Equal ones count as one.
                tried += 1
                self._hopeless[self._table[_SHAPE, row]] = lease.requested
                pool.keep(~self._are_like(row, pool.left))
                continue
            self._hopeless.pop(self._table[_SHAPE, row], None)
        self.unfinished = self.first is None and tried == MOST_HOPELESS
        return starts if self.unfinished else starts + self._fill(capacity, pool.left, ranks, shares, now)

    def _leave_out_hopeless(self, rows: Whole) -> Whole:
        """The rows without those that fitted nowhere, but for the few that were tried least recently."""
        if len(self._hopeless) <= MAX_RETRIES_PER_PASS:
            return rows
        for number in list(islice(self._hopeless, MAX_RETRIES_PER_PASS)):
            self._hopeless[number] = self._hopeless.pop(number)  # the last one to be tried again
        out = dict(islice(self._hopeless.items(), len(self._hopeless) - MAX_RETRIES_PER_PASS))
        numbers = np.array(sorted(out))
        least = np.array([out[number] for number in numbers.tolist()])
        shapes, requested = self._table[_SHAPE, rows], self._table[_REQUESTED, rows]
        at = np.minimum(np.searchsorted(numbers, shapes), len(numbers) - 1)
        kept: Whole = rows[(numbers[at] != shapes) | (requested < least[at])]
        return kept

    def _fill(self, capacity: Capacity, rows: Whole, ranks: Ranks, shares: Shares | None, now: float) -> list[Queued]:
        """Those that start though others come first."""
        starts: list[Queued] = []
        strict = self.first is not None and self.is_guarded(self.first, now)
        believed = self._table[_REQUESTED if strict else _PREDICTED]
        amounts, ends, tried = self._table[_CPU : _MEMORY + 1], now + believed, 0
        rows = rows[capacity.may_fit(amounts[:, rows], ends[rows])]
        pool = _Pool(self, rows, ranks, self._table[_PREDICTED] if self.model.shortest_first else ranks[1], shares)
        while tried < MOST_TRIED and (lease := pool.draw()) is not None:
            seconds = lease.requested if strict else lease.predicted
            if not capacity.start_beside(lease, seconds):
                tried += 1
                continue
            starts.append(lease)
            pool.suppose(lease)
            if self.first is not None and lease.keys:
                self.passed[self.first.id] = Passed(lease.keys[0], now, seconds)
            rows = pool.left
            pool.keep(capacity.may_fit(amounts[:, rows], ends[rows]))
        return starts

    def _are_like(self, row: int, rows: Whole) -> Flags:
        """Flags of those that can't start if the one in ``row`` can't: they are of its shape and request as much time or more."""
        shapes, requested = self._table[_SHAPE], self._table[_REQUESTED]
        like: Flags = (shapes[rows] == shapes[row]) & (requested[rows] >= requested[row])
        return like

    def _read_ranks(self, now: float) -> Ranks:
        """Level of each row, the guarded ones' being infinite, and its place in that: the lowest first."""
        table = self._table[:, : len(self._leases)]
        arrival, guarded = table[_ARRIVAL], now - table[_ARRIVAL] > self.model.guard_seconds
        rank = arrival
        if self.model.by_slowdown:
            waited, predicted = now - arrival + HEAD_START_SECONDS, table[_PREDICTED]
            urgency = -(waited + predicted) / (np.maximum(predicted, SHORTEST_SECONDS) * table[_WEIGHT])
            rank = np.where(guarded, arrival, urgency)
        return np.where(guarded, math.inf, table[_LEVEL]), rank

    def _predict(self, lease: Queued) -> None:
        known = self.model.learns
        lease.predicted = self.run_times.predict(lease.owner, lease.requested) if known else lease.requested


class _Pool:
    """Rows of a queue, drawn one after the other: of the highest level, of the project with the least share there, the one that is
    lowest in ``by``; of equal ones the first in the queue. Those of a project stand together, so a draw reads only these."""

    def __init__(self, queue: LeaseQueue, rows: Whole, ranks: Ranks, by: Values, shares: Shares | None) -> None:
        of = queue._table[_PROJECT, rows].astype(np.int32)
        order = np.argsort(of, kind="stable")
        self._queue = queue
        self._shares = shares
        self._rows = rows[order]
        self._by = np.minimum(by[self._rows], np.finfo(float).max)  # infinite: isn't drawn
        self._levels = ranks[0][self._rows]
        self._rank = ranks[1]
        self._here = np.ones(len(rows), dtype=bool)
        names = list(queue._projects)  # by number
        self._projects = of[order]
        self._bounds = np.searchsorted(self._projects, np.arange(len(names) + 1))
        waiting = self._bounds[1:] > self._bounds[:-1]
        self._weighted = np.full(len(names), math.inf)
        if shares is not None:
            for number in np.flatnonzero(waiting):
                self._weighted[number] = shares.weighted(names[number])
        self._top = math.inf  # the level that is drawn from
        self._level = np.empty(0)  # of its leases their ``by``; of all others infinite
        self._counts = np.zeros(len(names), dtype=int)  # of its leases, by project
        self._count = 0

    @property
    def left(self) -> Whole:
        """Rows of the queue."""
        return self._rows[self._here]

    def draw(self) -> Queued | None:
        if not self._count and not self._begin_level():
            return None
        low, high = 0, len(self._rows)
        if self._shares is not None and self._top < math.inf:
            least = int(np.argmin(np.where(self._counts > 0, self._weighted, math.inf)))
            low, high = self._bounds[least], self._bounds[least + 1]
        level = self._level[low:high]
        equal = low + np.flatnonzero(level == level.min())
        if len(equal) > 1:
            table, of = self._queue._table, self._rows[equal]
            equal = equal[np.lexsort((table[_SEQUENCE, of], table[_ARRIVAL, of], self._rank[of]))]
        found = equal[0]
        self._here[found], self._level[found] = False, math.inf
        self._counts[self._projects[found]] -= 1
        self._count -= 1
        lease: Queued = self._queue._leases[self._rows[found]]
        return lease

    def _begin_level(self) -> bool:
        """Draw from the highest level of those left; False: none are left."""
        if not self._here.any():
            return False
        self._top = self._levels[self._here].max()
        those = self._here & (self._levels == self._top)
        self._level = np.where(those, self._by, math.inf)
        self._counts = np.bincount(self._projects[those], minlength=len(self._counts))
        self._count = int(self._counts.sum())
        return True

    def keep(self, kept: Flags) -> None:
        """Drop the others of those left."""
        self._here[self._here] = kept
        self._count = 0  # of a level that begins again

    def suppose(self, lease: Queued) -> None:
        """Count it as if it had its place."""
        if self._shares is not None and lease.keys:
            for key in lease.keys:
                self._shares.suppose(key)
            self._weighted[self._queue._projects[lease.project]] = self._shares.weighted(lease.project)


def find_moment(
    amount: float, free: float, ends: Iterable[tuple[float, float]], *, all_ends: bool
) -> tuple[float, float]:
    """When ``amount`` of one divisible capacity is free at the latest, and how much is left beside it then. ``ends``: when what
    runs has to be over, and how much each gives back; with ``all_ends`` all of that moment count, else no more than are needed."""
    moment = math.inf
    for end, given_back in sorted(ends):
        if moment < math.inf and (end > moment or not all_ends):
            break
        free += given_back
        if free >= amount:
            moment = end
    return moment, free - amount if moment < math.inf else 0.0
