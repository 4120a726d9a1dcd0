"""Which leases with deadlines run at other times, or on other nodes, so that one that fits nowhere does. Pure but for the engine's
caches, and its snapshot, in which trials are counted and removed again.

What is promised to a lease with a deadline is its end: one that hasn't begun may begin at any time that keeps it, and one that may
be suspended is, for a while that is planned with both its times. Everything else keeps its place. A node begins no lease while the
server doesn't hear it (``agent/server/contact.py``), so what begins later than ``AHEAD_SECONDS`` from now hasn't begun
anywhere when its other times are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise

import msgspec
import numpy as np

from weft.contracts.policy import Request
from weft.informer.disruption.budgets import Budgets
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.fields.lease import AllocatedLease, LeaseRequest, PlannedPause
from weft.kinds.node import NODES_BY_UID, NodeReport
from weft.kinds.parts.workload import WORKLOADS_BY_UID
from weft.kinds.registry import find_kind
from weft.scheduler.allocation.count import read_entry
from weft.scheduler.allocation.lease import list_nearest
from weft.scheduler.allocation.preempt import SAVED_BYTES_PER_SECOND, may_suspend
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.lease.plan import Lease, Mode, PlannedPiece, Standing
from weft.scheduler.lease.promises import keep_work
from weft.scheduler.table.facts import amounts_on
from weft.scheduler.table.trial import Trial
from weft.scheduler.workload.request import Candidate, Waiting

AHEAD_SECONDS = 60.0
MOST_NODES = 16  # on which capacity is freed, and others may run
MOST_FLEXIBLE = 12  # leases, in one plan
MOST_OTHERS = 8  # in one commit
SAVES_AT_LEAST_SECONDS = 15.0  # twice what writing the memory takes comes on top

_TICK = (
    2.0**-22
)  # seconds: the least difference of two times since 1970; what is a multiple of it adds up without an error

Read = Callable[[Item], Candidate | Waiting]


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


class _Flexible(msgspec.Struct, frozen=True):
    workload: Item
    allocation: Item
    lease: AllocatedLease
    deadline_at: float
    begun: bool
    rows: tuple[int, ...]  # that it may run on; its own first
    splits: bool
    candidate: Candidate | None  # None: it stays on its node

    @property
    def spec(self) -> AllocationSpec:
        return self.allocation.spec(AllocationSpec)


def replan(
    view: View, engine: Engine, read: Read, asked: Asked, now: float, budgets: Budgets, *, searches: bool = True
) -> Replan | None:
    """A plan that keeps every promise, of those that change fewest leases; None if none was found. ``searches``: else only simple
    orders of the leases are tried."""
    if asked.lease.mode == "best-effort" or asked.lease.duration is None or asked.request.gang:
        return None
    snapshot = engine.snapshot
    snapshot.settle()
    rows = list_nearest(engine, asked.request, asked.lease, asked.grace_seconds, now, MOST_NODES)
    if not rows:
        return None
    splits = asked.lease.mode == "deadline" and bool(asked.lease.preemptible)
    splits = splits and may_split(asked.candidate.workload, asked.request, budgets)
    saving = tuple(row for row in rows if _can_save(view, snapshot.uids[row])) if splits else ()
    everywhere = _list_everywhere(engine, rows, now)
    found = _list_flexible(view, engine, read, asked, rows, everywhere, now, budgets)
    flexible = list(islice(found, MOST_FLEXIBLE))
    for chosen in _choose_sets(flexible, alone=bool(saving)):
        plan = _Plan(view, engine, asked, saving or tuple(rows), bool(saving), chosen, now)
        if (better := plan.find(searches=searches)) is not None:
            return better
    return None


def _list_everywhere(engine: Engine, rows: Sequence[int], now: float) -> list[int]:
    """``rows``, and the nodes with the most cores free now, of all."""
    snapshot = engine.snapshot
    free = snapshot.left_for_leases()[0] - snapshot.leases.find_taken_at(snapshot.uids, now)[0]
    most = np.argsort(-free, kind="stable")[:MOST_NODES]
    return list(dict.fromkeys((*rows, *(int(row) for row in most))))


def _choose_sets(flexible: list[_Flexible], *, alone: bool) -> Iterator[list[_Flexible]]:
    """Few before many."""
    if alone:
        yield []
    yield from ([one] for one in flexible)
    if len(flexible) > 1:
        yield flexible


def may_split(workload: Item, request: Request, budgets: Budgets) -> bool:
    """Whether a lease may be suspended as planned: its kind can be, and no disruption budget counts it."""
    can = any(verb.name == "suspend" for verb in find_kind(workload.envelope.kind).verbs)
    return can and request.gpus is None and not budgets.find(workload)


def _can_save(view: View, node_uid: str) -> bool:
    return any("suspend" in node.report(NodeReport).capabilities for node in view.find(NODES_BY_UID, node_uid))


def _list_flexible(
    view: View,
    engine: Engine,
    read: Read,
    asked: Asked,
    rows: Sequence[int],
    everywhere: Sequence[int],
    now: float,
    budgets: Budgets,
) -> Iterator[_Flexible]:
    """The leases on ``rows`` that may run at other times, ``everywhere``; those on the first nodes first."""
    for row in rows:
        for key in engine.snapshot.leases.list_keys(engine.snapshot.uids[row]):
            item = view.get(key)
            if item is None or item.spec(AllocationSpec).workload.uid == asked.candidate.workload.uid:
                continue
            if (found := _read_flexible(view, engine, read, item, row, everywhere, now, budgets)) is not None:
                yield found


def _read_flexible(
    view: View,
    engine: Engine,
    read: Read,
    item: Item,
    row: int,
    everywhere: Sequence[int],
    now: float,
    budgets: Budgets,
) -> _Flexible | None:
    spec, report, lease = item.spec(AllocationSpec), item.report(AllocationReport), item.spec(AllocationSpec).lease
    if (
        lease is None
        or lease.mode != "deadline"
        or lease.end is None
        or lease.cancelled
        or lease.suspension is not None
    ):
        return None
    if item.deleting or spec.role != "active" or spec.migration or spec.storage or spec.desired != "run":
        return None
    workload = next(iter(view.find(WORKLOADS_BY_UID, spec.workload.uid)), None)
    wants = spec_of(workload).lease if workload is not None else None
    if workload is None or workload.deleting or wants is None or wants.deadline_at is None or spec_of(workload).gang:
        return None
    deadline_at = max(wants.deadline_at, lease.end)
    splits = lease.preemptible and not spec.gpus and not budgets.find(workload)
    splits = splits and any(verb.name == "suspend" for verb in find_kind(spec.workload.kind).verbs)
    splits = splits and _can_save(view, spec.node_uid)
    if report.state == "pending" and lease.prepare_at > now + AHEAD_SECONDS and not spec.waits_for:
        candidate = _read_elsewhere(read, workload, spec)
        others = _list_rows(engine, item, candidate.request, everywhere) if candidate is not None else []
        if splits:
            others = [other for other in others if _can_save(view, engine.snapshot.uids[other])]
        rows = (row, *(other for other in others if other != row))
        return _Flexible(workload, item, lease, deadline_at, False, rows, splits, candidate)
    if splits and not lease.pauses and lease.start <= now and may_suspend(view, item):
        return _Flexible(workload, item, lease, deadline_at, True, (row,), splits, None)
    return None


def _read_elsewhere(read: Read, workload: Item, spec: AllocationSpec) -> Candidate | None:
    """It as a candidate for another node; None if it has something that only its node has."""
    if spec.gpus or spec.volumes or spec.origin is not None:
        return None
    candidate = read(workload)
    bound = isinstance(candidate, Waiting) or candidate.reserved or candidate.arriving is not None
    return None if bound or isinstance(candidate, Waiting) else candidate


def _list_rows(engine: Engine, item: Item, request: Request, rows: Sequence[int]) -> list[int]:
    """Those of ``rows`` that take it, but for its cores and memory, which are counted over time."""
    with engine.snapshot.trial() as trial:
        trial.drop(item.key)
        fits = engine.fits(msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2])))
        return [row for row in rows if fits[row]]


class _Plan:
    """A plan for one lease and those that may run at other times for it. Its times count from a whole second before now: sums of
    seconds since 1970 are too coarse."""

    def __init__(
        self,
        view: View,
        engine: Engine,
        asked: Asked,
        rows: tuple[int, ...],
        splits: bool,
        flexible: Sequence[_Flexible],
        now: float,
    ) -> None:
        self._view, self._engine, self._asked, self._flexible, self._now = view, engine, asked, flexible, now
        self._splits, self._own_rows = splits, rows
        self._origin = float(math.floor(now))
        self._rows = list(dict.fromkeys((*rows, *(row for one in flexible for row in one.rows))))

    def find(self, *, searches: bool) -> Replan | None:
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
        standings = [*(self._stand(one) for one in self._flexible), self._stand_asked()]
        plan = keep_work(standings, nodes, self._now - self._origin, searches=searches)
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
            suspended_seconds=_find_lost(lease, duration),
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

    def _replan(self, one: _Flexible, pieces: list[PlannedPiece]) -> AllocatedLease | None:
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
        return msgspec.structs.replace(other, suspended_seconds=_find_lost(other, whole))

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

    def _fits(self, found: Replan) -> bool:
        """Whether all of it fits beside everything else, counted one by one."""
        snapshot, asked = self._engine.snapshot, self._asked
        with snapshot.trial() as trial:
            trial.drop(*(one.allocation.key for one in found.others))
            for one in found.others:
                spec = one.allocation.spec(AllocationSpec)
                amounts = amounts_on(spec, spec.resources)
                if one.candidate is not None and one.row not in _list_rows(
                    self._engine, one.allocation, one.candidate.request, [one.row]
                ):
                    return False
                if not self._take(trial, one.allocation.key, one.row, one.lease, spec.grace_seconds, amounts):
                    return False
            amounts, key = asked.request.amounts, asked.candidate.workload.key
            return self._take(trial, key, found.row, found.lease, asked.grace_seconds, amounts)

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

    def _stand(self, one: _Flexible) -> Standing:
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
        return Standing(made, done_seconds=self._now - lease.start - lease.suspended_seconds, nodes=made.on)

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

    def _at(self, time: float) -> float:
        return time + self._origin


def find_saving_seconds(memory: int) -> float:
    """What is planned to write so many bytes, and as much to read them."""
    return SAVES_AT_LEAST_SECONDS + math.ceil(2.0 * memory / SAVED_BYTES_PER_SECOND)


def _round_up(seconds: float) -> float:
    return math.ceil(seconds / _TICK) * _TICK


def _find_lost(lease: AllocatedLease, duration: float) -> float:
    """For how long a lease of that duration doesn't work between its start and its end."""
    assert lease.end is not None
    return max(0.0, lease.end - lease.start - duration) if lease.pauses else lease.suspended_seconds
