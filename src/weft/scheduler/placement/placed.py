"""Decides on workloads that have a place already: a change of size, end or group, a place that is at risk, a suspended one that may
resume."""

from __future__ import annotations

from collections.abc import Callable

from weft.informer.commit import Commit
from weft.informer.view import Item
from weft.informer.workloads import spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec
from weft.kinds.fields.lease import LEASE_AT_RISK
from weft.scheduler.allocation.bind import Timing, plan_adopted, plan_regrouped, put_decision
from weft.scheduler.allocation.lease import Conflict, has_other_end, plan_extension, plan_within
from weft.scheduler.allocation.promise import clear_risk, find_trouble, is_at_risk, plan_at_risk, withdraw
from weft.scheduler.allocation.replan import has_pause_to_come, plan_fewer_pauses
from weft.scheduler.allocation.resize import clear_refused, find_growing, plan_resize
from weft.scheduler.allocation.resume import plan_resume
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.intake import Intake, is_regrouped, needs_resize
from weft.scheduler.migration.elsewhere import plan_resume_elsewhere
from weft.scheduler.placement import reserved, timed
from weft.scheduler.placement.binder import Binder
from weft.scheduler.placement.found import Search
from weft.scheduler.placement.readiness import PlacementReadiness
from weft.scheduler.queue.turn import is_suspended
from weft.scheduler.workload.request import Candidate, Waiting, read_memberships

Read = Callable[[Item], Candidate | Waiting]


class Placed:
    """``read`` gives a workload as a candidate for a place."""

    def __init__(
        self, read: Read, readiness: PlacementReadiness, binder: Binder, intake: Intake, strategy: str
    ) -> None:
        self._read = read
        self._readiness = readiness
        self._binder = binder
        self._intake = intake
        self._strategy = strategy

    def plan(self, search: Search, workload: Item, now: float) -> Commit | None:
        view, engine, batch = search.view, search.engine, self._binder.batch
        allocations = view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)
        if not allocations:
            return None
        for allocation in allocations:
            if is_suspended(allocation):
                return self._plan_resume(search, workload, allocation, now)
            if trouble := find_trouble(view, allocation, now):
                return self._plan_again(search, workload, allocation, trouble, now)
            if not allocation.deleting and needs_resize(view, allocation, workload):
                batch.resized.append(allocation.key)
                commit = plan_resize(view, engine.snapshot, workload, allocation, now)
                is_given = commit is not None and allocation.key in {write.key for write in commit.writes}
                if not is_given or find_growing(view, allocation.spec(AllocationSpec).volumes):
                    self._intake.cramped.add(workload.key)
                return commit
            if not allocation.deleting and has_other_end(view, allocation, spec_of(workload)):
                if spec_of(workload).reservation is not None:
                    return plan_within(view, workload, allocation, now)
                batch.resized.append(allocation.key)
                self._intake.cramped.add(workload.key)
                return plan_extension(engine, workload, allocation, now)
            if is_regrouped(allocation, workload):
                batch.resized.append(allocation.key)
                return plan_regrouped(workload, allocation, read_memberships(workload))
            if has_pause_to_come(allocation.spec(AllocationSpec).lease, now):
                self._intake.leases.add(workload.key)  # tried again when capacity over time becomes free
                if fewer := plan_fewer_pauses(view, engine, self._read, allocation, now, search.disruptions):
                    return self._binder.shorten(fewer, now)
        if is_at_risk(workload) and len(allocations) == 1:
            return clear_risk(workload, allocations[0], now)
        if len(allocations) == 1 and (commit := clear_refused(view, workload, allocations[0], now)) is not None:
            return commit
        return plan_adopted(workload, allocations, now)

    def _plan_again(self, search: Search, workload: Item, allocation: Item, trouble: str, now: float) -> Commit | None:
        """Another place for a lease that hasn't begun, and the end of the former one; or what its owner must know."""
        candidate = self._read(workload)
        found = candidate if isinstance(candidate, Waiting) else self._readiness.make_ready([candidate])
        if not isinstance(found, Waiting):
            again = self._bind_again(search, self._readiness.relax(found[0]), allocation, now)
            if isinstance(again, Commit):
                return withdraw(search.view, again, workload, allocation, trouble, now)
            self._intake.addresses.give_back(search.view, found[0].reserved)
            message = again.message
        else:
            message = found.message
        self._intake.leases.add(workload.key)
        message = f"{trouble}, and its lease hasn't begun; {message}"
        decision = None
        if isinstance(candidate, Candidate):
            explanation = Explanation(len(search.engine.snapshot), [], {}, LEASE_AT_RISK, message)
            decision = put_decision(search.view, workload, candidate, explanation, Timing(now, 0.0))
        return plan_at_risk(workload, message, decision, now)

    def _bind_again(
        self, search: Search, candidate: Candidate, allocation: Item, now: float
    ) -> Commit | Conflict | Waiting:
        began = search.clock.elapsed()
        if spec_of(candidate.workload).reservation is not None:
            found = reserved.find_one(search, candidate, now)
            if isinstance(found, Waiting):
                self._intake.wait_for_reservation(candidate.workload)
                return found
        else:
            held = allocation.spec(AllocationSpec).lease
            assert held is not None
            again = timed.find_again(search, candidate, held, now)
            if isinstance(again, Conflict):
                return again
            found = again
        return self._binder.bind(found, search.time_since(began, now))

    def _plan_resume(self, search: Search, workload: Item, allocation: Item, now: float) -> Commit | None:
        """It waits with those that wait for capacity over time, until its node has what it had; after a while, until any has."""
        batch, candidate, commit = self._binder.batch, self._read(workload), None
        if isinstance(candidate, Candidate) and self._readiness.find_obstacle(candidate) is None:
            commit = plan_resume(search.engine, self._readiness.relax(candidate), allocation, now)
        if commit is not None:
            batch.resized.append(allocation.key)
            return commit
        self._intake.leases.add(workload.key)
        if not batch.migrates:
            commit = plan_resume_elsewhere(
                search.view, search.engine, workload, allocation, self._strategy, self._intake.silent, now
            )
            batch.migrates = commit is not None
        return commit
