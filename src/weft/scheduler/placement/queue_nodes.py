"""The nodes as the queue of leases sees them (``lease/backfill.py``): who fits now, and what is held for the first that doesn't.

A lease starts only where all that it requested fits, beside all that was promised: the calendar says so. What is held for the
first one is no promise, and predictions count beside it: it lies in a copy of its nodes' times, where what starts in a gap ends as
predicted.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import msgspec

from weft.contracts.policy import Flags, Request, Values
from weft.objects.identity import Ref
from weft.scheduler.allocation.lease import Opening, find_opening
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.gang.leases import LeasedMember, LeasedPlace, Refusal, count_member, find_leased_places
from weft.scheduler.lease.availability import Availability
from weft.scheduler.lease.backfill import Queued, Shares
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.table.trial import Trial

_FURTHEST_SECONDS = 2 * 366 * 86400.0  # for the first of the queue, if it is a gang: from now to its end
Places = dict[int, LeasedPlace]  # by member


class QueuedLease(Queued, eq=False):
    """A workload that waits with a best-effort lease, or a gang of such."""

    members: tuple[LeasedMember, ...] = ()
    ref: Ref | None = None  # of it, or of the gang's first member

    @property
    def shape(self) -> Hashable:
        return _read_requests(self)


class _Hold(msgspec.Struct):
    """A hold on one node: from ``start`` on, and what is free there then, with what starts in gaps."""

    start: float
    free: Availability


class Nodes:
    """Nodes for one pass at ``now``, within ``trial``. ``placed``: by lease the places of those that start; ``held``: what is kept
    for the first that doesn't."""

    def __init__(self, engine: Engine, trial: Trial, now: float) -> None:
        self.placed: dict[str, Places] = {}
        self.held: list[CalendarEntry] = []
        self._engine = engine
        self._snapshot = snapshot = engine.snapshot
        self._trial = trial
        self._now = now
        self._holds: dict[int, _Hold] = {}  # by row
        snapshot.settle()
        self._free = snapshot.left_for_leases() - snapshot.leases.find_taken_at(snapshot.uids, now)
        self._refused: dict[
            tuple[Request, ...], tuple[float, float]
        ] = {}  # what equal ones requested, and were predicted
        self._hopeless: set[tuple[Request, ...]] = set()

    def start(self, lease: Queued) -> bool:
        return self._start(lease, lease.requested, [])

    def hold(self, lease: Queued) -> bool:
        assert isinstance(lease, QueuedLease)
        requests = _read_requests(lease)
        if requests in self._hopeless:
            return False
        places = self._find(lease, later=True)
        if places is None:
            self._hopeless.add(requests)
            return False
        snapshot = self._snapshot
        for number, place in places.items():
            member, held = lease.members[number], place.lease
            assert held is not None and held.end is not None
            amounts = member.request.amounts[:2]
            entry = CalendarEntry(snapshot.uids[place.row], held.prepare_at, held.end + member.grace_seconds, amounts)
            self.held.append(entry)
            hold = self._holds.get(place.row)
            if hold is None:
                left = snapshot.left_for_leases()[:, place.row]
                free = snapshot.leases.read_free(entry.node_uid, (int(left[0]), int(left[1])))
                hold = self._holds[place.row] = _Hold(held.prepare_at, free)
            hold.free.take(entry.start, entry.end, amounts)
        return True

    def may_ever_fit(self, amounts: Values) -> Flags:
        most = self._snapshot.left_for_leases().max(axis=1, initial=-1)
        fits: Flags = (amounts[0] <= most[0]) & (amounts[1] <= most[1])
        return fits

    def may_fit(self, amounts: Values, ends: Values) -> Flags:
        free = self._free.copy()
        free[:, list(self._holds)] = -1
        most = free.max(axis=1, initial=-1)
        fits: Flags = (amounts[0] <= most[0]) & (amounts[1] <= most[1])
        for row, hold in self._holds.items():
            now, then = self._free[:, row], hold.free.free_at(hold.start)
            beside = (ends <= hold.start) | ((amounts[0] <= then[0]) & (amounts[1] <= then[1]))
            fits |= (amounts[0] <= now[0]) & (amounts[1] <= now[1]) & beside
        return fits

    def start_beside(self, lease: Queued, seconds: float) -> bool:
        assert isinstance(lease, QueuedLease)
        if len(lease.members) > 1:
            return self._start_gang_beside(lease, seconds)
        (member,) = lease.members
        return self._start(lease, seconds, [row for row in self._holds if not self._fits_beside(row, member, seconds)])

    def _start(self, lease: Queued, seconds: float, barred: Sequence[int]) -> bool:
        assert isinstance(lease, QueuedLease)
        requests = _read_requests(lease)
        refused = self._refused.get(requests)
        if refused is not None and refused[0] <= lease.requested and refused[1] <= seconds:
            return False
        if (places := self._find(lease, barred)) is None:
            self._refused[requests] = lease.requested, seconds if barred else 0.0
            return False
        self._count(lease, places, seconds)
        return True

    def _find(self, lease: QueuedLease, barred: Sequence[int] = (), *, later: bool = False) -> Places | None:
        engine, members, now = self._engine, lease.members, self._now
        if len(members) == 1:
            (member,) = members
            assert member.asked is not None
            found = find_opening(
                engine,
                member.request,
                member.uid,
                member.asked,
                member.grace_seconds,
                now,
                later=later,
                barred=barred,
            )
            return {0: LeasedPlace(found.row, found.lease)} if isinstance(found, Opening) else None
        if later:  # together, at the first time at which all of them fit
            members = tuple(
                msgspec.structs.replace(
                    member,
                    asked=msgspec.structs.replace(member.asked, mode="deadline", deadline_at=now + _FURTHEST_SECONDS),
                )
                for member in members
                if member.asked is not None
            )
        places = find_leased_places(engine, members, now)
        return None if isinstance(places, Refusal) else places

    def _start_gang_beside(self, lease: QueuedLease, seconds: float) -> bool:
        """Start a gang beside what is held as if all took what they requested, or else where the members find places without it."""
        with self._snapshot.trial() as trial:
            for number, entry in enumerate(self.held):
                trial.put_leased(f"held/{number}", entry, 0)
            places = self._find(lease)
        if places is None:
            places = self._find(lease)
            if places is None:
                return False
            taken: list[tuple[int, LeasedMember]] = []
            for number, place in places.items():
                member = lease.members[number]
                if place.row in self._holds:
                    if not self._fits_beside(place.row, member, seconds):
                        self._take(taken, seconds, give_back=True)
                        return False
                    self._take([(place.row, member)], seconds)
                    taken.append((place.row, member))
            self._take(taken, seconds, give_back=True)
        self._count(lease, places, seconds)
        return True

    def _fits_beside(self, row: int, member: LeasedMember, seconds: float) -> bool:
        end = self._now + seconds + member.grace_seconds
        return self._holds[row].free.fits(self._now, end, member.request.amounts[:2])

    def _take(self, taken: list[tuple[int, LeasedMember]], seconds: float, *, give_back: bool = False) -> None:
        for row, member in taken:
            sign, amounts = -1 if give_back else 1, member.request.amounts
            end = self._now + seconds + member.grace_seconds
            self._holds[row].free.take(self._now, end, (sign * amounts[0], sign * amounts[1]))

    def _count(self, lease: QueuedLease, places: Places, seconds: float) -> None:
        self.placed[lease.id] = places
        for number, place in places.items():
            member = lease.members[number]
            count_member(self._engine, self._trial, f"queued/{lease.id}/{number}", member, place)
            cpu, memory, _ = member.request.amounts
            self._free[:, place.row] -= (cpu, memory)
            if place.row in self._holds:
                self._take([(place.row, member)], seconds)


def choose_starts(engine: Engine, now: float, shares: Shares | None = None) -> list[tuple[QueuedLease, Places]]:
    """One pass of the queue: the leases that start now, in order, and where. Nothing of it is counted afterwards."""
    queue, snapshot = engine.leases, engine.snapshot
    with snapshot.trial() as trial:
        trial.drop(*queue.kept)
        nodes = Nodes(engine, trial, now)
        starts = queue.choose(nodes, now, shares)
    queue.held = nodes.held
    return [(lease, nodes.placed[lease.id]) for lease in starts if isinstance(lease, QueuedLease)]


def _read_requests(lease: QueuedLease) -> tuple[Request, ...]:
    return tuple(member.request for member in lease.members)


def read_amounts(members: Sequence[LeasedMember]) -> tuple[float, float]:
    """The least that a node must have to take any of them."""
    every = [member.request.amounts for member in members]
    return float(min(one[0] for one in every)), float(min(one[1] for one in every))


def read_size(members: Sequence[LeasedMember]) -> float:
    """Cores, in all."""
    return max(math.fsum(member.request.amounts[0] for member in members) / 1000, 0.001)
