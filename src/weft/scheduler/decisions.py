"""Decides on workloads, one after the other: the place that each gets, what it waits for, or why it is refused.

Reads the view and the snapshot, in which each decision is counted, so that the next sees it; returns commits and writes nothing.
The loop takes the workloads from the queue, and commits. Where a place is looked for depends on the mode: ``placement/plain.py``
now and without an end, ``timed.py`` for a lease that ends, ``queued.py`` for one that waits for its turn, ``reserved.py`` in a
reservation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weft.informer.commit import Commit
from weft.informer.disruption.budgets import Budgets
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Item, View
from weft.informer.workloads import gang_of, spec_of
from weft.kinds.fields.lease import ELSEWHERE_SECONDS, LEASE_CONFLICT
from weft.scheduler.allocation.bind import StatusUpdate, no_status_update, plan_waiting
from weft.scheduler.batches import Batch, PendingBatches
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.gang.assembly import assemble_gang
from weft.scheduler.gang.search_budget import Budget, ProjectsBudget
from weft.scheduler.intake import Intake
from weft.scheduler.own_policies.registry import OwnPolicies
from weft.scheduler.placement import plain, reserved, timed
from weft.scheduler.placement.binder import Binder
from weft.scheduler.placement.found import Placement, PlacementResult, Refusal, Search
from weft.scheduler.placement.placed import Placed
from weft.scheduler.placement.queued import QueuedLeases, are_queued
from weft.scheduler.placement.readiness import PlacementReadiness
from weft.scheduler.workload.request import Candidate, Waiting, read_candidate, wants_place

Find = Callable[[Search, list[Candidate], float], PlacementResult | None]


class Decisions:
    """``plan`` decides on the workloads of a ``batch``."""

    def __init__(
        self,
        leadership: LeaderLease,
        intake: Intake,
        engine: Engine,
        own: OwnPolicies,
        pending: PendingBatches,
        *,
        strategy: str,
        update_status: StatusUpdate = no_status_update,
        elsewhere_seconds: float = ELSEWHERE_SECONDS,
    ) -> None:
        self.starting: set[str] = set()  # keys of workloads that wait for a worker of a custom policy
        self.budget = Budget()  # of time for gangs
        self._clock = leadership.clock
        self._pending = pending
        self._view: View = leadership.cache.view
        self._intake = intake
        self._strategy = strategy
        self._search = Search(
            view=self._view,
            engine=engine,
            clock=leadership.clock,
            queue=intake.queue,
            own=own,
            gang_budget=self.budget,
            plan_budget=ProjectsBudget(),
            disruptions=Budgets(self._view),
            read=self._read,
        )
        self._binder = Binder(self._view, engine, intake, update_status, elsewhere_seconds)
        self._readiness = PlacementReadiness(self._view, engine.snapshot, intake, own, pending, lambda: self.batch)
        self.leases = QueuedLeases(self._view, engine, intake, self._read, strategy)
        self._placed = Placed(self._read, self._readiness, self._binder, intake, strategy)
        self._assembled: set[str] = set()  # gangs that were decided on in the batch in hand

    @property
    def batch(self) -> Batch:
        """The one in hand."""
        return self._binder.batch

    def plan(self, keys: Sequence[str]) -> list[Commit]:
        """Decide on these workloads, one after the other; each sees the placements of those before it."""
        self._binder.begin(keys)
        self._intake.refresh_silent()
        self._assembled.clear()
        self._search.disruptions = Budgets(self._view)
        commits: list[Commit | None] = []
        for at, key in enumerate(keys, 1):
            before = self._binder.count
            workload = self._view.get(key)
            if workload is not None and spec_of(workload).gang is not None and wants_place(self._view, workload):
                commits += self._plan_gang(workload)
            elif workload is not None and not workload.deleting:
                commits += self._plan_one(workload)
            if self._intake.queue.contended and self._binder.count == before:
                self._intake.queue.give_back(keys[at:])  # another project may come first now
                break
        return [commit for commit in commits if commit is not None]

    def _plan_one(self, workload: Item) -> Sequence[Commit | None]:
        now = self._clock.now()
        if not wants_place(self._view, workload):
            return [self._placed.plan(self._search, workload, now)]
        candidate = self._read(workload)
        found = candidate if isinstance(candidate, Waiting) else self._readiness.make_ready([candidate])
        if isinstance(found, Waiting):
            return [self._plan_waiting(workload, found, now)]
        return self._decide(found, now)

    def _plan_gang(self, workload: Item) -> Sequence[Commit | None]:
        """Decide on all workloads that must be placed together with ``workload``: one commit places them."""
        now = self._clock.now()
        found = assemble_gang(self._view, workload, self._strategy, self._intake.silent)
        name = gang_of(workload)
        if isinstance(found, list):
            if len(found) > 1 and name in self._assembled:
                return []
            found = self._readiness.make_ready(found)
        if isinstance(found, Waiting):
            return [self._plan_waiting(workload, found, now)]
        if len(found) > 1:
            self._assembled.add(name)
        return self._decide(found, now)

    def _decide(self, candidates: list[Candidate], now: float) -> Sequence[Commit | None]:
        """The commits of places for all ``candidates``, or of what each of them is told."""
        candidates = [self._readiness.relax(candidate) for candidate in candidates]
        began = self._clock.elapsed()
        find = self.leases.find if are_queued(candidates) else _choose_mode(candidates)
        found = find(self._search, candidates, now)
        if found is None:
            self._give_back(candidates)
            return []
        timing = self._search.time_since(began, now)
        if isinstance(found, Waiting):
            return [self._plan_slotless(candidate, found, now) for candidate in candidates]
        places = [one for one in found if isinstance(one, Placement)]
        if places:
            return self._binder.bind_all(places, timing)
        refused = [one for one in found if isinstance(one, Refusal)]
        final = any(one.explanation.error == LEASE_CONFLICT for one in refused)
        if final and (self.batch.replans or self._pending.replans):  # what they leave must be known before that
            self._intake.leases.update(candidate.workload.key for candidate in candidates)
            self._give_back(candidates)
            return []
        return [self._binder.refuse(one, timing) for one in refused]

    def _give_back(self, candidates: list[Candidate]) -> None:
        for candidate in candidates:
            self._intake.addresses.give_back(self._view, candidate.reserved)

    def _plan_slotless(self, candidate: Candidate, waiting: Waiting, now: float) -> Commit | None:
        """It waits for a slot of its reservation."""
        self._intake.wait_for_reservation(candidate.workload)
        self._intake.addresses.give_back(self._view, candidate.reserved)
        return self._plan_waiting(candidate.workload, waiting, now)

    def _plan_waiting(self, workload: Item, waiting: Waiting, now: float) -> Commit | None:
        self.leases.forget(workload)
        if waiting.reason == "policyNotFound":
            self._intake.unruled.add(workload.key)
        if waiting.reason == "policyStarting":
            self.starting.add(workload.key)
        if waiting.address is not None and waiting.address.lasts:
            self._intake.unaddressed.add(workload.key)
        return plan_waiting(workload, waiting, now)

    def _read(self, workload: Item) -> Candidate | Waiting:
        return read_candidate(self._view, workload, self._strategy, self._intake.silent)


def _choose_mode(candidates: Sequence[Candidate]) -> Find:
    specs = [spec_of(candidate.workload) for candidate in candidates]
    if any(spec.reservation is not None for spec in specs):
        return reserved.find
    if any(spec.lease is not None and spec.lease.duration is not None for spec in specs):
        return timed.find
    return plain.find
