"""The leases that wait in one queue: enters those that arrive, has the queue say who starts, and finds these their places.

A pass of the queue counts nothing that lasts. Those that start are queued for a decision like every workload, in their turn, and
get the places of the pass if these are still free; those that wait are told why, once, or have others give way to them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import msgspec

from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import PREEMPTIBLE, PREEMPTIBLE_ANYWHERE, AllocationSpec
from weft.kinds.fields.lease import PATIENCE_SECONDS
from weft.objects.quantity import format_time
from weft.scheduler.allocation.preempt import LEAST, may_preempt
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.gang.assembly import assemble_gang
from weft.scheduler.gang.explain import explain_leased_refusal
from weft.scheduler.gang.leases import Refusal as GangRefusal
from weft.scheduler.gang.leases import find_leased_places
from weft.scheduler.intake import Intake
from weft.scheduler.lease.backfill import MAX_RETRIES_PER_PASS, Queued
from weft.scheduler.placement import timed
from weft.scheduler.placement.found import PlacementResult, Refusal, Search
from weft.scheduler.placement.preemption import preempt
from weft.scheduler.placement.queue_nodes import QueuedLease, choose_starts, read_amounts, read_size
from weft.scheduler.queue.shares import Shares
from weft.scheduler.queue.turn import is_queued, name_lease
from weft.scheduler.table.facts import name_for
from weft.scheduler.workload.request import Candidate, Waiting, wants_place

Read = Callable[[Item], Candidate | Waiting]
MOST_ENTERED = 200  # in one pass
MOST_RETRIED = 20  # that may have others give way to them, after one pass
_KEPT = "kept/"  # begins the names under which what is held for the first one is counted


class QueuedLeases:
    """``read`` gives a workload as a candidate for a place."""

    def __init__(self, view: View, engine: Engine, intake: Intake, read: Read, strategy: str) -> None:
        self._view = view
        self._engine = engine
        self._intake = intake
        self._read = read
        self._strategy = strategy
        self._starts: dict[str, dict[str, str]] = {}  # by lease: of each workload, by uid, the node that it starts on
        self._told: set[str] = set()  # leases that wait, whose owners are told so
        self._to_try = 0  # of those that fit nowhere, since something has changed
        self._passes = 0
        self._retried: dict[str, int] = {}  # by lease: the last pass after which others might have given way to it

    def run(self, now: float) -> None:
        """One pass: queue those that start, and those that must be told that they wait, for decisions."""
        queue, snapshot, intake = self._engine.leases, self._engine.snapshot, self._intake
        keys, gained = intake.begin_pass(MOST_ENTERED)
        entered = self._enter(keys)
        if gained:
            self._to_try = queue.hopeless
        first = queue.first
        shares = Shares(self._view, snapshot) if queue.has_projects else None
        self._starts = {
            lease.id: {lease.members[number].uid: snapshot.names[place.row] for number, place in places.items()}
            for lease, places in choose_starts(self._engine, now, shares)
        }
        self._to_try -= MAX_RETRIES_PER_PASS
        if queue.unfinished or self._to_try > 0:
            intake.continue_pass()
        self._keep(now)
        told = [id_ for id_ in entered if id_ not in self._starts]
        if queue.first is not None and queue.first is not first:
            told.append(queue.first.id)
        if gained:
            told += self._list_preempting(now)
        self._told = {*self._told, *told} - self._starts.keys()
        # Of a gang one workload stands for all.
        intake.offer_to_lanes(
            lease.keys[0] for id_ in (*self._starts, *dict.fromkeys(told)) if (lease := queue.get(id_)) is not None
        )

    def find(self, search: Search, candidates: list[Candidate], now: float) -> PlacementResult | None:
        """The places of those whose turn it is, or why they wait; None: a pass decides on them first, or has done so."""
        queue, id_ = self._engine.leases, name_lease(candidates[0].workload)
        starts = self._starts.pop(id_, None)
        if starts is not None and queue.get(id_) is not None and len(starts) == len(candidates):
            with self._engine.snapshot.trial() as trial:
                trial.drop(*queue.kept)
                found = timed.find_places(search, candidates, starts, now)
            if found is not None:
                queue.drop(id_)
                self._keep(now)
                return found
            self._told.add(id_)  # others came first
        if id_ not in self._told:
            if queue.get(id_) is None:
                self._intake.enter(candidate.workload.key for candidate in candidates)
            return None
        self._told.discard(id_)
        return self._refuse(search, candidates, now)

    def forget(self, workload: Item) -> None:
        """It doesn't wait any more, or lacks more than capacity."""
        id_ = name_lease(workload)
        self._engine.leases.drop(id_)
        self._starts.pop(id_, None)
        self._told.discard(id_)
        if self._engine.leases.kept and self._engine.leases.first is None:
            self._intake.enter(())  # a pass gives back what was kept for it

    def _enter(self, keys: Sequence[str]) -> list[str]:
        """Enter those that can be placed into the queue; the others are queued for a decision that says what they lack."""
        entered, lacking = dict[str, None](), list[str]()
        for key in keys:
            workload = self._view.get(key)
            if workload is None or workload.deleting or not wants_place(self._view, workload):
                continue
            found: Candidate | Waiting | list[Candidate] = self._read(workload)
            if spec_of(workload).gang is not None:
                if name_lease(workload) in entered:
                    continue
                found = assemble_gang(self._view, workload, self._strategy, self._intake.silent)
            candidates = [found] if isinstance(found, Candidate) else found
            if isinstance(candidates, Waiting) or not are_queued(candidates):
                self.forget(workload)
                lacking.append(key)
                continue
            lease = read_lease(candidates)
            self._engine.leases.put(lease)
            entered[lease.id] = None
        self._intake.offer_to_lanes(lacking)
        return list(entered)

    def _keep(self, now: float) -> None:
        """Count what is held for the first one, once it has waited long, against everything else. Nothing gains by a change of it
        that the next pass would start: only what isn't in the queue is woken."""
        queue, snapshot = self._engine.leases, self._engine.snapshot
        patient = queue.first is not None and now - queue.first.arrival >= PATIENCE_SECONDS
        held = {f"{_KEPT}{number}": entry for number, entry in enumerate(queue.held)} if patient else {}
        if held == queue.kept:
            return
        for name in queue.kept.keys() - held.keys():
            snapshot.drop_allocation(name)
        for name, entry in held.items():
            snapshot.put_leased(name, entry, 0)
        queue.kept = held
        self._intake.wake_classes(leases=False)

    def _list_preempting(self, now: float) -> list[str]:
        """The first of those for which something that runs might give way, and of the others those tried least recently."""
        victims = self._view.find(PREEMPTIBLE, PREEMPTIBLE_ANYWHERE)
        least = min((_read_priority(item) for item in victims), default=None)
        if least is None:
            return []
        queue = self._engine.leases
        found = [lease for lease in queue.list_above(least) if isinstance(lease, QueuedLease)]
        found = [lease for lease in found if may_preempt(lease.members[0].request)]
        retried = {lease.id: self._retried.get(lease.id, 0) for lease in found}
        chosen = heapq.nsmallest(MOST_RETRIED // 2, found, key=_read_order)
        first = {lease.id for lease in chosen}
        others = [lease for lease in found if lease.id not in first]
        chosen += heapq.nsmallest(
            MOST_RETRIED - len(chosen), others, key=lambda lease: (retried[lease.id], *_read_order(lease))
        )
        self._passes += 1
        self._retried = retried | dict.fromkeys([lease.id for lease in chosen], self._passes)
        return [lease.id for lease in chosen]

    def _refuse(self, search: Search, candidates: list[Candidate], now: float) -> PlacementResult:
        if len(candidates) > 1:
            return self._refuse_gang(search, candidates, now)
        candidate, preempting = preempt(search, candidates[0], now)
        if preempting is not None:
            self.forget(candidate.workload)
            return [preempting]
        return [timed.refuse(search, candidate, now, self._describe_first(candidate.workload))]

    def _refuse_gang(self, search: Search, candidates: list[Candidate], now: float) -> PlacementResult:
        members, engine = timed.read_members(candidates, now), search.engine
        found = find_leased_places(engine, members, now)
        if isinstance(found, GangRefusal):
            explanations = explain_leased_refusal(engine, members, found)
        else:
            gang = members[0].request.gang.partition("/")[2]
            message = f"gang {gang}: {self._describe_first(candidates[0].workload)}"
            why = Explanation(len(engine.snapshot), [], {}, "insufficientResources", message)
            explanations = [msgspec.structs.replace(why, gang=gang)] * len(candidates)
        return [Refusal(each, why, sleeps=False) for each, why in zip(candidates, explanations, strict=True)]

    def _describe_first(self, workload: Item) -> str:
        """Why it waits though it would fit."""
        queue = self._engine.leases
        first = queue.first
        if (
            not isinstance(first, QueuedLease)
            or first.ref is None
            or not queue.held
            or first.id == name_lease(workload)
        ):
            return "others come first"
        start = min(entry.start for entry in queue.held)
        name = name_for(workload.envelope.project, first.ref)
        return f"the capacity is kept for {name}, which comes first and starts by {format_time(start)}"


def are_queued(candidates: Sequence[Candidate]) -> bool:
    return all(is_queued(spec_of(candidate.workload)) for candidate in candidates)


def read_lease(candidates: Sequence[Candidate]) -> QueuedLease:
    """A workload, or a gang, as a lease that waits: since its first member does, for as long as the longest requests."""
    workloads = [candidate.workload for candidate in candidates]
    first, members = min(workloads, key=lambda item: item.envelope.created_at), timed.read_members(candidates, 0.0)
    leases = [member.asked for member in members if member.asked is not None]
    project = first.envelope.project or ""
    return QueuedLease(
        id=name_lease(first),
        owner=(project, first.envelope.creator),
        arrival=first.envelope.created_at,
        amounts=read_amounts(members),
        requested=max(lease.duration or 0.0 for lease in leases),
        size=read_size(members),
        level=float(min(lease.priority for lease in leases)),
        project=project,
        keys=tuple(item.key for item in workloads),
        members=tuple(members),
        ref=first.envelope.ref,
    )


def _read_order(lease: Queued) -> tuple[float, float]:
    return -lease.level, lease.arrival


def _read_priority(allocation: Item) -> float:
    spec = allocation.spec(AllocationSpec)
    return LEAST if spec.preemptible or spec.lease is None else spec.lease.priority
