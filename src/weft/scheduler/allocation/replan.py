"""Plan leases with deadlines at other times, or on other nodes, to make one fit that fits nowhere. Pure but for the engine's
caches, and its snapshot, in which trials are counted and removed again.

``flexible.py`` says which leases may; everything else keeps its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice, pairwise

import msgspec
import numpy as np

from weft.contracts.policy import Request
from weft.informer.disruption.budgets import Budgets
from weft.informer.view import Item, View
from weft.kinds.allocation import AllocationSpec
from weft.kinds.fields.lease import AllocatedLease, LeaseRequest, PlannedPause
from weft.objects.quantity import format_time
from weft.scheduler.allocation.count import read_entry
from weft.scheduler.allocation.flexible import (
    AHEAD_SECONDS,
    Flexible,
    Read,
    can_save,
    list_flexible,
    list_rows,
    may_split,
    read_flexible,
)
from weft.scheduler.allocation.lease import list_nearest
from weft.scheduler.allocation.preempt import SAVED_BYTES_PER_SECOND
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.lease.availability import Availability, Checks
from weft.scheduler.lease.plan import Lease, Mode, PlannedPiece, Standing
from weft.scheduler.lease.promises import keep_work
from weft.scheduler.table.facts import amounts_on, name_for
from weft.scheduler.table.trial import Trial
from weft.scheduler.workload.request import Candidate

MOST_NODES = 16  # on which capacity is freed, and others may run
MOST_FLEXIBLE = 12  # leases, in one plan
MOST_OTHERS = 8  # in one commit
MOST_CHECKS = 20_000  # by simple orders, in all plans for one lease
FEW_CHECKS = 1_000  # where there is no time to search
LEAST_GAIN_SECONDS = 1.0  # by which a lease must be done sooner to get other times for that alone
SAVES_AT_LEAST_SECONDS = 15.0  # twice what writing the memory takes comes on top

_TICK = 2.0**-22  # seconds: the least difference of two times since 1970; multiples of it add up without an error


class Asked(msgspec.Struct, frozen=True):
    """A lease that fits nowhere."""

    candidate: Candidate
    lease: LeaseRequest
    grace_seconds: float

    @property
    def request(self) -> Request:
        return self.candidate.request


class Replanned(msgspec.Struct, frozen=True):
    """A lease with a deadline, and when it runs instead; on the node of ``row``."""

    workload: Item
    allocation: Item
    lease: AllocatedLease
    row: int
    candidate: Candidate | None = None  # if it begins on another node

    @property
    def former(self) -> AllocatedLease:
        lease = self.allocation.spec(AllocationSpec).lease
        assert lease is not None
        return lease


class Replan(msgspec.Struct, frozen=True):
    """The lease runs on the node of ``row`` once all of ``others`` have their other times."""

    row: int
    lease: AllocatedLease
    others: tuple[Replanned, ...]


def replan(
    view: View, engine: Engine, read: Read, asked: Asked, now: float, budgets: Budgets, *, searches: bool = True
) -> Replan | None:
    """A plan that keeps every promise, of those that change fewest leases; None if none was found. ``searches``: else only simple
    orders of the leases are tried, and fewer. However many leases there are, it looks at no more than so many."""
    if asked.lease.mode == "best-effort" or asked.lease.duration is None or asked.request.gang:
        return None
    snapshot = engine.snapshot
    snapshot.settle()
    rows = list_nearest(engine, asked.request, asked.lease, asked.grace_seconds, now, MOST_NODES)
    if not rows:
        return None
    splits = asked.lease.mode == "deadline" and bool(asked.lease.preemptible)
    splits = splits and may_split(asked.candidate.workload, asked.request, budgets)
    saving = tuple(row for row in rows if can_save(view, snapshot.uids[row])) if splits else ()
    everywhere = _list_everywhere(engine, rows, now)
    found = list_flexible(view, engine, read, asked.candidate.workload.uid, rows, everywhere, now, budgets)
    flexible = list(islice(found, MOST_FLEXIBLE))
    sets = _choose_sets(flexible, alone=bool(saving))
    checks = Checks(MOST_CHECKS if searches else FEW_CHECKS)
    for number, chosen in enumerate(sets, 1):
        plan = _Plan(engine, asked, saving or tuple(rows), bool(saving), chosen, now)
        if (better := plan.find(checks, searches=searches and number == len(sets))) is not None:
            return better
    return None


def _list_everywhere(engine: Engine, rows: Sequence[int], now: float) -> list[int]:
    """``rows``, and the nodes with the most cores free now, of all."""
    snapshot = engine.snapshot
    free = snapshot.left_for_leases()[0] - snapshot.leases.find_taken_at(snapshot.uids, now)[0]
    most = np.argsort(-free, kind="stable")[:MOST_NODES]
    return list(dict.fromkeys((*rows, *(int(row) for row in most))))


def _choose_sets(flexible: list[Flexible], *, alone: bool) -> list[list[Flexible]]:
    """Few before many."""
    sets = [[]] if alone else list[list[Flexible]]()
    sets += [[one] for one in flexible]
    return [*sets, flexible] if len(flexible) > 1 else sets


def has_pause_to_come(lease: AllocatedLease | None, now: float) -> bool:
    """Whether it will be suspended as planned, and that may still be taken back."""
    return lease is not None and any(pause.at > now + AHEAD_SECONDS for pause in lease.pauses)


def plan_fewer_pauses(
    view: View, engine: Engine, read: Read, allocation: Item, now: float, budgets: Budgets
) -> Replanned | None:
    """Other times on its node for a lease whose pauses nothing needs any more, or not all of them: it is done sooner. None if there
    are none."""
    spec = allocation.spec(AllocationSpec)
    row = engine.snapshot.index_of(spec.node_uid)
    if row is None or not engine.snapshot.online[row] or not has_pause_to_come(spec.lease, now):
        return None
    engine.snapshot.settle()
    flexible = read_flexible(view, engine, read, allocation, row, [row], now, budgets)
    return None if flexible is None else _Times(engine, [flexible], (), now).shorten(flexible)


class _Times:
    """Times for leases that may run at others. They count from a whole second before now: sums of seconds since 1970 are too
    coarse."""

    def __init__(self, engine: Engine, flexible: Sequence[Flexible], rows: tuple[int, ...], now: float) -> None:
        self._engine, self._flexible, self._now = engine, flexible, now
        self._origin = float(math.floor(now))
        self._rows = list(dict.fromkeys((*rows, *(row for one in flexible for row in one.rows))))

    def shorten(self, one: Flexible) -> Replanned | None:
        free, now = self._list_free(), self._now - self._origin
        plan = keep_work([self._stand(one)], free, now, Checks(FEW_CHECKS), searches=False)
        lease = self._replan(one, plan[one.allocation.key]) if plan is not None else None
        assert one.lease.end is not None
        if lease is None or lease.end is None or lease.end > one.lease.end - LEAST_GAIN_SECONDS:
            return None
        found = Replanned(one.workload, one.allocation, lease, one.rows[0])
        with self._engine.snapshot.trial() as trial:
            trial.drop(one.allocation.key)
            return found if self._take_other(trial, found) else None

    def _list_free(self) -> list[Availability]:
        """Free capacity of each of the rows beside these leases."""
        snapshot = self._engine.snapshot
        with snapshot.trial() as trial:
            trial.drop(*(one.allocation.key for one in self._flexible))
            left = snapshot.left_for_leases()
            nodes = [
                snapshot.leases.read_free(snapshot.uids[row], (int(left[0, row]), int(left[1, row])))
                for row in self._rows
            ]
        for node in nodes:
            node.shift(-self._origin)
        return nodes

    def _replan(self, one: Flexible, pieces: list[PlannedPiece]) -> AllocatedLease | None:
        held = one.lease
        assert held.end is not None
        made = self._make_lease(pieces, one.spec.grace_seconds, 0.0)
        if made is None or made.end is None:
            return None
        start = held.start if one.begun else made.start
        same = (
            not made.pauses and not held.pauses and abs(start - held.start) < 1e-3 and abs(made.end - held.end) < 1e-3
        )
        if same:
            return held
        whole = held.end - held.start - held.suspended_seconds
        other = msgspec.structs.replace(
            held,
            start=start,
            prepare_at=held.prepare_at if one.begun else start,
            end=made.end,
            pauses=made.pauses,
        )
        former = one.find_rested(find_saving_seconds(amounts_on(one.spec, one.spec.resources)[1]))
        return msgspec.structs.replace(other, suspended_seconds=_find_lost(other, whole, former))

    def _make_lease(self, pieces: list[PlannedPiece], grace: float, ahead: float) -> AllocatedLease | None:
        """Its times; None if its last piece is too short for more than its shutdown."""
        if len(pieces) > 1 and pieces[-1].work_seconds <= grace:
            return None
        pauses = tuple(
            PlannedPause(self._at(piece.end - piece.suspend_seconds), self._at(piece.end), self._at(after.start))
            for piece, after in pairwise(pieces)
        )
        first = self._at(pieces[0].start)
        return AllocatedLease(
            mode="deadline",
            start=first + ahead,
            end=self._at(pieces[-1].end) - _round_up(grace),
            prepare_at=first,
            pauses=pauses,
        )

    def _take_other(self, trial: Trial, one: Replanned) -> bool:
        spec = one.allocation.spec(AllocationSpec)
        amounts = amounts_on(spec, spec.resources)
        return self._take(trial, one.allocation.key, one.row, one.lease, spec.grace_seconds, amounts)

    def _take(
        self, trial: Trial, name: str, row: int, lease: AllocatedLease, grace: float, amounts: tuple[int, int, int]
    ) -> bool:
        """Count a lease under a name of its own; False if it doesn't fit."""
        snapshot = self._engine.snapshot
        entry = read_entry(snapshot.uids[row], lease, grace, amounts[:2], self._now)
        left = snapshot.left_for_leases()
        free = snapshot.leases.read_free(entry.node_uid, (int(left[0, row]), int(left[1, row])))
        fits = all(free.fits(max(start, self._now), end, entry.amounts) for start, end in entry.stretches)
        trial.put_leased(f"planned/{name}", entry, amounts[2])
        return fits

    def _stand(self, one: Flexible) -> Standing:
        lease, spec = one.lease, one.spec
        assert lease.end is not None
        cpu, memory, _ = amounts_on(spec, spec.resources)
        duration = _round_up(lease.end - lease.start - lease.suspended_seconds) + _round_up(spec.grace_seconds)
        made = Lease(
            id=one.allocation.key,
            mode="deadline",
            arrival=one.allocation.envelope.created_at - self._origin,
            machines=((float(cpu), float(memory)),),
            duration=duration,
            start=self._now - self._origin,
            deadline=one.deadline_at - self._origin + _round_up(spec.grace_seconds),
            preemptible=one.splits,
            suspend_seconds=find_saving_seconds(memory),
            on=tuple(self._rows.index(row) for row in one.rows),
            stays=True,
        )
        if not one.begun:
            return Standing(made)
        return Standing(
            made, done_seconds=self._now - lease.start - one.find_rested(made.suspend_seconds), nodes=made.on
        )

    def _at(self, time: float) -> float:
        return time + self._origin


class _Plan(_Times):
    """A plan for one lease and those that may run at other times for it."""

    def __init__(
        self,
        engine: Engine,
        asked: Asked,
        rows: tuple[int, ...],
        splits: bool,
        flexible: Sequence[Flexible],
        now: float,
    ) -> None:
        super().__init__(engine, flexible, rows, now)
        self._asked, self._splits, self._own_rows = asked, splits, rows

    def find(self, checks: Checks, *, searches: bool) -> Replan | None:
        standings = [*(self._stand(one) for one in self._flexible), self._stand_asked()]
        plan = keep_work(standings, self._list_free(), self._now - self._origin, checks, searches=searches)
        return None if plan is None else self._read(plan)

    def _read(self, plan: dict[str, list[PlannedPiece]]) -> Replan | None:
        """The new leases of ``plan``; None if it changes too many, or doesn't fit after all."""
        asked, ahead = self._asked, self._find_ahead()
        pieces = plan[asked.candidate.workload.key]
        row, lease = self._rows[pieces[0].nodes[0]], self._make_lease(pieces, asked.grace_seconds, ahead)
        if lease is None:
            return None
        duration, request = asked.lease.duration or 0.0, asked.lease
        if request.mode == "reservation" and request.start is not None:
            lease = msgspec.structs.replace(lease, start=request.start, end=request.start + duration)
        lease = msgspec.structs.replace(
            lease,
            mode=request.mode or "deadline",
            preemptible=bool(request.preemptible),
            priority=request.priority,
            requested=duration,
            suspended_seconds=_find_lost(lease, duration, 0.0),
        )
        others = []
        for one in self._flexible:
            there = self._rows[plan[one.allocation.key][0].nodes[0]]
            other = self._replan(one, plan[one.allocation.key])
            if other is None:
                return None
            if there != one.rows[0] or other != one.lease:
                elsewhere = one.candidate if there != one.rows[0] else None
                others.append(Replanned(one.workload, one.allocation, other, there, elsewhere))
        found = Replan(row, lease, tuple(others))
        return found if len(others) <= MOST_OTHERS and self._fits(found) else None

    def _fits(self, found: Replan) -> bool:
        """Whether all of it fits beside everything else, counted one by one."""
        snapshot, asked = self._engine.snapshot, self._asked
        with snapshot.trial() as trial:
            trial.drop(*(one.allocation.key for one in found.others))
            for one in found.others:
                if one.candidate is not None and one.row not in list_rows(
                    self._engine, one.allocation, one.candidate.request, [one.row]
                ):
                    return False
                if not self._take_other(trial, one):
                    return False
            amounts, key = asked.request.amounts, asked.candidate.workload.key
            return self._take(trial, key, found.row, found.lease, asked.grace_seconds, amounts)

    def _stand_asked(self) -> Standing:
        asked, request = self._asked, self._asked.lease
        cpu, memory, _ = asked.request.amounts
        mode: Mode = request.mode or "deadline"
        ahead, grace = self._find_ahead(), _round_up(asked.grace_seconds)
        start = self._now if request.start is None else request.start - ahead
        made = Lease(
            id=asked.candidate.workload.key,
            mode=mode,
            arrival=self._now - self._origin,
            machines=((float(cpu), float(memory)),),
            duration=ahead + _round_up(request.duration or 0.0) + grace,
            start=start - self._origin,
            deadline=(request.deadline_at or math.inf) - self._origin + grace,
            preemptible=self._splits,
            suspend_seconds=find_saving_seconds(memory),
            on=tuple(self._rows.index(row) for row in self._own_rows),
            stays=True,
        )
        return Standing(made)

    def _find_ahead(self) -> float:
        """Seconds for which a reservation takes its capacity before its start."""
        asked = self._asked.lease
        if asked.mode != "reservation" or asked.start is None:
            return 0.0
        return min(_round_up(self._engine.leads.find(self._asked.request)), max(0.0, asked.start - self._now))


def describe_other(one: Replanned, project: str | None) -> str:
    """Describe its new place or times for people of ``project``."""
    name = name_for(project, one.workload.envelope.ref)
    if one.candidate is not None:
        return f"{name} begins on another node for it"
    if one.lease.pauses and one.lease.start == one.former.start:
        return f"{name} is suspended for it from {format_time(one.lease.pauses[0].at)} on, and is done by its deadline"
    return f"{name} begins at {format_time(one.lease.start)} for it, and is done by its deadline"


def find_saving_seconds(memory: int) -> float:
    """Seconds planned to write so many bytes, and as much to read them."""
    return SAVES_AT_LEAST_SECONDS + math.ceil(2.0 * memory / SAVED_BYTES_PER_SECOND)


def _round_up(seconds: float) -> float:
    return math.ceil(seconds / _TICK) * _TICK


def _find_lost(lease: AllocatedLease, duration: float, former: float) -> float:
    """Seconds that a lease of that duration doesn't work between its start and its end; ``former`` if it has no pauses."""
    assert lease.end is not None
    return max(0.0, lease.end - lease.start - duration) if lease.pauses else former
