"""Answers which workloads wait, in the scheduler's order, when each is expected to start, and what holds it. Pure but for the
snapshot, which is restored afterwards.

An expected start is the first time at which a node has the capacity once those before it have theirs, by the ends of leases. Where
these aren't enough, ends of tasks are guessed from what their project's last jobs took.
"""

from __future__ import annotations

import math
from functools import partial

from msgspec.structs import replace

from weft.informer.view import Item, View
from weft.informer.workloads import list_workloads, name_of, spec_of
from weft.kinds.allocation import (
    ALLOCATIONS_BY_WORKLOAD,
    AllocationReport,
    AllocationSpec,
    is_lease_over,
)
from weft.kinds.fields.lease import LEASE_WAITS, PREEMPTED, LeaseRequest
from weft.kinds.job import JobSpec, JobStatus
from weft.kinds.report import HeldBy, QueuedWorkload
from weft.objects.errors import shorten
from weft.objects.identity import object_key
from weft.objects.quantity import format_time
from weft.scheduler.allocation.lease import Opening, find_slot
from weft.scheduler.constraint.relax import relax
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.lease.prediction import RunTimes
from weft.scheduler.queue.lanes import Queue
from weft.scheduler.queue.passing import describe_passing
from weft.scheduler.queue.shares import Shares
from weft.scheduler.queue.turn import PATIENT, QueuePosition, find_turn, is_suspended, name_lease, waits_since
from weft.scheduler.table.facts import NO_LOAD, amounts_of, amounts_on, name_for
from weft.scheduler.table.trial import Trial
from weft.scheduler.workload.request import Candidate, read_candidate, wants_place

MOST_SHOWN = 250  # an answer is one object, of limited size
MOST_SEARCHED = 250  # starts that are searched; each takes a pass over all nodes
LONGEST_MESSAGE = 300


def list_queue(
    view: View, engine: Engine, strategy: str, now: float, project: str | None = None
) -> tuple[list[QueuedWorkload], int]:
    """The first workloads that wait, and how many do; with ``project`` only its own, at the places that they have among all."""
    waiting, promised = find_waiting(view, engine, now)
    starts = _Starts(view, engine, strategy, now)
    starts.search(waiting)
    leases = [lease for item in waiting[:MOST_SEARCHED] if (lease := engine.leases.get(name_lease(item))) is not None]
    name = partial(_name, view, to_all=project is None)
    passed = describe_passing(engine.leases, list(dict.fromkeys(leases)), now, name)
    shown = [
        replace(
            _describe(view, item, place, starts.found.get(item.key), now, to_all=project is None),
            passed_by=passed.get(name_lease(item), ""),
        )
        for place, item in enumerate(waiting, 1)
        if project in (None, item.envelope.project)
    ]
    shown += [
        _describe(view, item, None, (start, "high"), now, to_all=project is None)
        for start, item in promised
        if project in (None, item.envelope.project)
    ]
    return shown[:MOST_SHOWN], len(shown)


def find_waiting(view: View, engine: Engine, now: float) -> tuple[list[Item], list[tuple[float, Item]]]:
    """Those that wait for capacity, the next one first; and those with a promised start, by it."""
    queue, turns, promised = Queue(), list[tuple[QueuePosition, Item]](), []
    for item in list_workloads(view):
        placed = item.envelope.condition("Placed")
        if item.deleting or (placed is not None and placed.status == "True" and spec_of(item).lease is None):
            continue
        allocations = view.find(ALLOCATIONS_BY_WORKLOAD, item.uid)
        starts = [start for allocation in allocations if (start := _read_start(allocation)) > now]
        if starts:
            promised.append((min(starts), item))
        elif wants_place(view, item) or any(map(is_suspended, allocations)):
            turns.append((find_turn(view, item, now), item))
    for turn, item in sorted(_order_leases(engine, turns, now), key=lambda one: (one[0].since, one[1].key)):
        queue.offer(item.key, turn)
    promised.sort(key=lambda one: (one[0], one[1].key))
    shares, keys = Shares(view, engine.snapshot), list[str]()
    while queue.ready:
        keys += queue.take(len(queue), lambda: shares)
    return [found for key in keys if (found := view.get(key)) is not None], promised


def _order_leases(
    engine: Engine, turns: list[tuple[QueuePosition, Item]], now: float
) -> list[tuple[QueuePosition, Item]]:
    """``turns``, with those of the leases in their queue given to these in the queue's order."""
    ranks = {lease.id: rank for rank, lease in enumerate(engine.leases.order(now))}
    queued = [(turn, item) for turn, item in turns if name_lease(item) in ranks]
    ordered = sorted((item for _, item in queued), key=lambda item: ranks[name_lease(item)])
    their_turns = sorted((turn for turn, _ in queued), key=lambda turn: (-turn.level, turn.since))
    given = [
        (turn if turn.level == PATIENT else turn._replace(project=item.envelope.project or ""), item)
        for turn, item in zip(their_turns, ordered, strict=True)
    ]
    return given + [(turn, item) for turn, item in turns if name_lease(item) not in ranks]


def _name(view: View, key: str, project: str, *, to_all: bool) -> str:
    item = view.get(key)
    if item is None:
        return "a workload that is gone"
    return name_of(item) if to_all else name_for(project, item.envelope.ref)


def _read_start(allocation: Item) -> float:
    spec = allocation.spec(AllocationSpec)
    if spec.lease is None or spec.lease.cancelled or is_lease_over(spec, allocation.report(AllocationReport)):
        return -math.inf
    return spec.lease.start


class _Starts:
    """``found``: by key when a workload is expected to start, and how sure that is."""

    def __init__(self, view: View, engine: Engine, strategy: str, now: float) -> None:
        self.found: dict[str, tuple[float, str]] = {}
        self._view = view
        self._engine = engine
        self._strategy = strategy
        self._now = now

    def search(self, waiting: list[Item]) -> None:
        """First by known ends alone, then, for those without a start, by guessed ends as well."""
        snapshot = self._engine.snapshot
        asked = waiting[:MOST_SEARCHED]
        with snapshot.trial() as trial:
            self._search(asked, trial, known=True)
            left = [item for item in asked if item.key not in self.found]
            ends = _guess_ends(self._view, self._now) if left else {}
            trial.drop(*ends)
            for key, end in ends.items():
                spec = self._view.get(key).spec(AllocationSpec)  # type: ignore[union-attr]
                amounts = amounts_on(spec, spec.resources)
                held = CalendarEntry(spec.node_uid, self._now, end + spec.grace_seconds, amounts[:2])
                trial.put_leased(key, held, amounts[2], NO_LOAD)
            if ends:
                self._search(left, trial, known=False)

    def _search(self, waiting: list[Item], trial: Trial, *, known: bool) -> None:
        for item in waiting:
            start = self._find(item, trial)
            if start is None:
                known = False  # it may come before those behind it after all
            else:
                self.found[item.key] = start, "high" if known else "low"

    def _find(self, item: Item, trial: Trial) -> float | None:
        """The first time for all of its lease, which is counted from then on; None for what waits for more than a node's
        capacity."""
        spec, snapshot = spec_of(item), self._engine.snapshot
        if spec.gang is not None or spec.reservation is not None:
            return None
        candidate = read_candidate(self._view, item, self._strategy, [])
        if not isinstance(candidate, Candidate):
            return None
        request, seconds = relax(candidate.request, snapshot)[0], spec.lease and spec.lease.duration
        suspended = self._view.find(ALLOCATIONS_BY_WORKLOAD, item.uid)
        for allocation in suspended:  # resumes where it is, for the rest of its lease; it has its disk
            place = allocation.spec(AllocationSpec)
            request = replace(request, node=place.node, amounts=(*amounts_of(place.resources)[:2], 0), asks=())
            if place.lease is not None and place.lease.end is not None and place.lease.suspension is not None:
                seconds = max(1.0, place.lease.end - place.lease.suspension.at)
        asked = LeaseRequest(mode="best-effort", duration=seconds or math.inf)
        with snapshot.trial() as alone:
            alone.drop(*(allocation.key for allocation in suspended))
            slot = find_slot(self._engine, request, item.uid, asked, spec.grace, self._now, later=True)
        if not isinstance(slot, Opening):
            return None
        end = (slot.lease.end or math.inf) + spec.grace
        held = CalendarEntry(snapshot.uids[slot.row], slot.lease.start, end, request.amounts[:2])
        trial.put_leased(f"expected {item.key}", held, request.amounts[2], NO_LOAD)
        return slot.lease.start


def _guess_ends(view: View, now: float) -> dict[str, float]:
    """When tasks that run without a lease may end, by the key of their allocation."""
    times, ends = RunTimes(), {}
    for job in sorted(view.of_kind("job").values(), key=lambda item: item.status(JobStatus).ended_at or 0.0):
        status = job.status(JobStatus)
        if status.phase == "Succeeded" and status.started_at is not None and status.ended_at is not None:
            if status.tasks <= job.spec(JobSpec).parallelism:  # they ran at the same time
                times.add(job.envelope.project, status.ended_at - status.started_at)
    for item in view.of_kind("allocation").values():
        spec, report = item.spec(AllocationSpec), item.report(AllocationReport)
        if not spec.once or spec.lease is not None or report.state != "running":
            continue
        began = report.started_at or item.envelope.created_at
        seconds = times.guess(spec.workload.project, _read_timeout(view, spec))
        if seconds is not None and began + seconds > now:  # what takes longer is no longer guessed
            ends[item.key] = began + seconds
    return ends


def _read_timeout(view: View, spec: AllocationSpec) -> float | None:
    ref = spec.workload
    workload = view.get(object_key(ref.kind, ref.project, ref.name))
    job = view.get(workload.envelope.owner_key("job") or "") if workload is not None else None
    return job.spec(JobSpec).task_timeout if job is not None else None


def _describe(
    view: View, item: Item, place: int | None, start: tuple[float, str] | None, now: float, *, to_all: bool
) -> QueuedWorkload:
    """``to_all``: for who may see all projects."""
    lease, allocations = spec_of(item).lease, view.find(ALLOCATIONS_BY_WORKLOAD, item.uid)
    return QueuedWorkload(
        place=place,
        workload=name_of(item),
        kind=item.envelope.kind,
        project=item.envelope.project or "",
        priority=lease.priority if lease is not None else 0,
        waiting_seconds=round(max(0.0, now - waits_since(view, item)), 3),
        expected_start=start[0] if start is not None else None,
        confidence=start[1] if start is not None else "none",  # type: ignore[arg-type]
        held_by=_find_hold(item, allocations, start[0] if place is None and start is not None else None, to_all),
    )


def _find_hold(item: Item, allocations: list[Item], promised: float | None, to_all: bool) -> HeldBy:
    if promised is not None:
        return HeldBy(LEASE_WAITS, f"its lease begins at {format_time(promised)}")
    for allocation in allocations:
        lease = allocation.spec(AllocationSpec).lease
        if lease is not None and lease.suspension is not None:
            winner = (to_all and lease.suspension.named) or lease.suspension.winner
            return HeldBy(PREEMPTED, f"suspended for {winner}")
    placed = item.envelope.condition("Placed")
    if placed is None or placed.status == "True" or placed.generation != item.envelope.generation:
        return HeldBy("undecided", "the scheduler has not decided on it yet")
    return HeldBy(placed.reason, shorten(placed.message, LONGEST_MESSAGE))
