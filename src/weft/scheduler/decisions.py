"""Decides on workloads, one after the other: the place that each gets, what it waits for, or why it is refused.

Reads the view and the snapshot, in which each decision is counted at once, so the next sees it; returns commits and writes
nothing. The loop takes the workloads from the queue, and commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from weft.contracts.policy import Request
from weft.informer.commit import Commit
from weft.informer.disruption.budgets import Allowance, Budgets
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Item, View
from weft.informer.workloads import gang_of, name_of, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec, allocation_name
from weft.kinds.fields.lease import ELSEWHERE_SECONDS, LEASE_AT_RISK, LEASE_CONFLICT, MOST_PRIORITY, LeaseRequest
from weft.kinds.node import NODES_BY_UID
from weft.kinds.project import ProjectSpec
from weft.kinds.registry import find_kind
from weft.objects.identity import new_uid, object_key
from weft.scheduler.allocation.bind import (
    StatusUpdate,
    Timing,
    no_status_update,
    plan_addresses,
    plan_adopted,
    plan_placement,
    plan_refusal,
    plan_regrouped,
    plan_waiting,
    put_decision,
)
from weft.scheduler.allocation.lease import Conflict, find_slot, has_other_end, plan_extension, plan_within
from weft.scheduler.allocation.preempt import (
    describe_kept,
    describe_way,
    find_way,
    giving_way,
    join_victims,
    name_victims,
    read_need,
)
from weft.scheduler.allocation.promise import (
    find_again,
    find_trouble,
    is_at_risk,
    plan_at_risk,
    plan_safe,
    read_lost,
    withdraw,
)
from weft.scheduler.allocation.resize import plan_resize
from weft.scheduler.allocation.resume import plan_resume
from weft.scheduler.batches import Batch, PendingBatches
from weft.scheduler.constraint.relax import relax
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import Explanation, describe_choice, explain
from weft.scheduler.gang.assembly import assemble_gang
from weft.scheduler.gang.commit import find_excess, join
from weft.scheduler.gang.explain import explain_leased_places, explain_leased_refusal, explain_places, explain_refusal
from weft.scheduler.gang.leases import LeasedMember, Refusal, find_leased_places, open_lease
from weft.scheduler.gang.placement import Member, find_places
from weft.scheduler.gang.search_budget import Budget
from weft.scheduler.gang.within import Places
from weft.scheduler.intake import Intake, is_regrouped, needs_resize
from weft.scheduler.lease.calendar import Lease
from weft.scheduler.migration.elsewhere import plan_resume_elsewhere
from weft.scheduler.own_policies.registry import OwnPolicies
from weft.scheduler.queue.turn import is_patient, is_suspended
from weft.scheduler.reservation.placing import Within, find_within, without_slot
from weft.scheduler.table.facts import Load, name_workload
from weft.scheduler.workload.request import (
    Candidate,
    Waiting,
    read_candidate,
    read_memberships,
    reserve_addresses,
    wants_place,
)

MOST_REPHRASED = 20  # workloads of a class whose condition gets a new message in one batch; the others keep the old one


class Decisions:
    """``plan`` decides on the workloads of a ``batch``."""

    def __init__(
        self,
        lease: LeaderLease,
        intake: Intake,
        engine: Engine,
        own: OwnPolicies,
        pending: PendingBatches,
        *,
        strategy: str,
        update_status: StatusUpdate = no_status_update,
        elsewhere_seconds: float = ELSEWHERE_SECONDS,
    ) -> None:
        self.batch = Batch()  # in hand
        self.starting: set[str] = set()  # keys of workloads that wait for a worker of a custom policy
        self.budget = Budget()  # of time for gangs
        self._lease = lease
        self._view: View = lease.cache.view
        self._intake = intake
        self._engine = engine
        self._snapshot = engine.snapshot
        self._own = own
        self._pending = pending
        self._strategy = strategy
        self._update_status = update_status
        self._elsewhere_seconds = elsewhere_seconds
        self._rephrased: Counter[Request] = Counter()  # in the batch in hand
        self._assembled: set[str] = set()  # gangs that were decided on in the batch in hand
        self._budgets = Budgets(self._view)  # of the batch in hand

    def plan(self, keys: Sequence[str]) -> list[Commit]:
        """Decide on these workloads, one after the other; each sees the placements of those before it."""
        self.batch = Batch(keys)
        self._intake.refresh_silent()
        self._rephrased.clear()
        self._assembled.clear()
        self._budgets = Budgets(self._view)
        commits: list[Commit | None] = []
        for at, key in enumerate(keys, 1):
            before = len(self.batch.assumed) + len(self.batch.resized)
            workload = self._view.get(key)
            if workload is not None and spec_of(workload).gang is not None and wants_place(self._view, workload):
                commits += self._plan_gang(workload)
            else:
                commits.append(self._plan_one(key))
            if self._intake.queue.contended and len(self.batch.assumed) + len(self.batch.resized) == before:
                self._intake.queue.give_back(keys[at:])  # another project may come first now
                break
        return [commit for commit in commits if commit is not None]

    def _plan_one(self, key: str) -> Commit | None:
        workload = self._view.get(key)
        if workload is None or workload.deleting:
            return None
        now = self._lease.clock.now()
        if not wants_place(self._view, workload):
            return self._plan_placed(workload, now)
        candidate = read_candidate(self._view, workload, self._strategy, self._intake.silent)
        found = candidate if isinstance(candidate, Waiting) else self._make_ready([candidate])
        if isinstance(found, Waiting):
            return self._plan_waiting(workload, found, now)
        return self._decide(found[0], now)

    def _plan_gang(self, workload: Item) -> list[Commit | None]:
        """Decide on all workloads that must be placed together with ``workload``: one commit places them."""
        now = self._lease.clock.now()
        found = assemble_gang(self._view, workload, self._strategy, self._intake.silent)
        name = gang_of(workload)
        if isinstance(found, list):
            if len(found) > 1 and name in self._assembled:
                return []
            found = self._make_ready(found)
        if isinstance(found, Waiting):
            return [self._plan_waiting(workload, found, now)]
        if len(found) == 1:
            return [self._decide(found[0], now)]
        self._assembled.add(name)
        candidates = [self._relax(candidate) for candidate in found]
        if any(spec_of(each.workload).reservation is not None for each in candidates):
            return self._plan_gang_within(candidates, now)
        if any(
            (lease := spec_of(each.workload).lease) is not None and lease.duration is not None for each in candidates
        ):
            return self._plan_leased_gang(candidates, now)
        candidates = [self._lease_openly(candidate, now) for candidate in candidates]
        members = [Member(c.request, c.workload.uid, name_workload(c.workload.envelope.ref)) for c in candidates]
        began = self._lease.clock.elapsed()
        search = self.budget.allows(began)
        joint = find_places(self._engine, members, search=search)
        if joint.searched:
            self.budget.spend(began, self._lease.clock.elapsed())
        if joint.rows is None and not joint.proven and not search:
            self.budget.owed.add(workload.key)
        explain_each = explain_refusal if joint.rows is None else explain_places
        explanations = explain_each(self._engine, members, joint)
        timing = Timing(now, round((self._lease.clock.elapsed() - began) * 1000, 3))
        if joint.rows is None:
            return [
                self._refuse(c, explanation, timing) for c, explanation in zip(candidates, explanations, strict=True)
            ]
        return self._bind_gang([(candidates[m], joint.rows[m], explanations[m]) for m in joint.order], timing)

    def _plan_leased_gang(self, candidates: list[Candidate], now: float) -> list[Commit | None]:
        """Places for members of which some have leases that end, or why there are none."""
        began, members = self._lease.clock.elapsed(), list[LeasedMember]()
        for each in candidates:
            spec, name = spec_of(each.workload), name_workload(each.workload.envelope.ref)
            held = read_lost(each.workload, spec.lease, now) if spec.lease is not None else None
            members.append(LeasedMember(each.request, each.workload.uid, name, spec.lease, held, spec.grace))
        found = find_leased_places(self._engine, members, now)
        timing = Timing(now, round((self._lease.clock.elapsed() - began) * 1000, 3))
        if not isinstance(found, Refusal):
            places = [
                (msgspec.structs.replace(candidates[number], lease=place.lease), place.row, explanation)
                for (number, place), explanation in zip(
                    found.items(), explain_leased_places(self._engine, members, found), strict=True
                )
            ]
            return self._bind_gang(places, timing)
        commits = []
        for each, explanation in zip(candidates, explain_leased_refusal(self._engine, members, found), strict=True):
            if explanation.error != LEASE_CONFLICT:
                self._intake.leases.add(each.workload.key)
            commits.append(self._refuse(each, explanation, timing, sleeps=False))
        return commits

    def _plan_gang_within(self, candidates: list[Candidate], now: float) -> list[Commit | None]:
        """Slots for all members in their reservation, or what they wait for."""
        began = self._lease.clock.elapsed()
        found = Places(self._view, self._engine, candidates, now).find()
        timing = Timing(now, round((self._lease.clock.elapsed() - began) * 1000, 3))
        if isinstance(found, Waiting):
            for each in candidates:
                self._intake.wait_for_reservation(each.workload)
                self._intake.addresses.give_back(self._view, each.reserved)
            return [self._plan_waiting(each.workload, found, now) for each in candidates]
        places = [(*self._enter(candidates[number], place), place.load) for number, place in found.items()]
        return self._bind_gang(places, timing)

    def _bind_gang(
        self, places: Sequence[tuple[Candidate, int, Explanation, *tuple[Load, ...]]], timing: Timing
    ) -> list[Commit | None]:
        """One commit that places all of them, each on the node of its row; in several steps where that is too large."""
        first, now, candidates = len(self.batch.assumed), timing.at, [candidate for candidate, *_ in places]
        commit = join([self._bind(candidate, row, why, timing, *load) for candidate, row, why, *load in places])
        excess = find_excess(commit)
        if not excess:
            return [commit]
        self.batch.take_back(self._snapshot, first, [volume for each in candidates for volume in each.volumes])
        if any(each.reserved for each in candidates):  # their addresses first, and then all the places together
            return [plan_addresses(each, now) for each in candidates if each.reserved]
        large = Waiting("gangTooLarge", f"the gang's placements don't fit into one commit: {excess}")
        return [plan_waiting(candidate.workload, large, now) for candidate in candidates]

    def _make_ready(self, candidates: list[Candidate]) -> list[Candidate] | Waiting:
        """``candidates`` with an address reserved for each of their NICs, or what one of them must wait for."""
        obstacle = next((found for each in candidates if (found := self._find_obstacle(each)) is not None), None)
        return obstacle or reserve_addresses(self._intake.addresses, self._view, candidates)

    def _find_obstacle(self, candidate: Candidate) -> Waiting | None:
        """What it must wait for: a volume that another workload got in a pending batch, or a worker of its policy."""
        for volume in candidate.volumes:
            other = self.batch.attached.get(volume.uid) or self._pending.attached(volume.uid)
            if other is not None:
                return Waiting("volumeInUse", f"volume {volume.name} is attached to {name_of(other)}")
        if not self._own.prepare(candidate.request.strategy):
            return Waiting("policyStarting", "the placement policy is starting")
        return None

    def _plan_waiting(self, workload: Item, waiting: Waiting, now: float) -> Commit | None:
        if waiting.reason == "policyNotFound":
            self._intake.unruled.add(workload.key)
        if waiting.reason == "policyStarting":
            self.starting.add(workload.key)
        if waiting.address is not None and waiting.address.lasts:
            self._intake.unaddressed.add(workload.key)
        return plan_waiting(workload, waiting, now)

    def _plan_placed(self, workload: Item, now: float) -> Commit | None:
        allocations = self._view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)
        if not allocations:
            return None
        for allocation in allocations:
            if is_suspended(allocation):
                return self._plan_resume(workload, allocation, now)
            if trouble := find_trouble(self._view, allocation, now):
                return self._plan_again(workload, allocation, trouble, now)
            if not allocation.deleting and needs_resize(allocation, spec_of(workload)):
                self.batch.resized.append(allocation.key)
                commit = plan_resize(self._view, self._snapshot, workload, allocation, now)
                if commit is None or allocation.key not in {write.key for write in commit.writes}:
                    self._intake.cramped.add(workload.key)
                return commit
            if not allocation.deleting and has_other_end(self._view, allocation, spec_of(workload)):
                if spec_of(workload).reservation is not None:
                    return plan_within(self._view, workload, allocation, now)
                self.batch.resized.append(allocation.key)
                self._intake.cramped.add(workload.key)
                return plan_extension(self._engine, workload, allocation, now)
            if is_regrouped(allocation, workload):
                self.batch.resized.append(allocation.key)
                return plan_regrouped(workload, allocation, read_memberships(workload))
        if is_at_risk(workload) and len(allocations) == 1:
            return plan_safe(workload, allocations[0], now)
        return plan_adopted(workload, allocations, now)

    def _plan_again(self, workload: Item, allocation: Item, trouble: str, now: float) -> Commit | None:
        """Another place for a lease that hasn't begun, and the end of the former one; or what its owner must know."""
        candidate = read_candidate(self._view, workload, self._strategy, self._intake.silent)
        found = candidate if isinstance(candidate, Waiting) else self._make_ready([candidate])
        if not isinstance(found, Waiting):
            again = self._find_again(self._relax(found[0]), allocation, now)
            if isinstance(again, Commit):
                return withdraw(self._view, again, workload, allocation, trouble, now)
            self._intake.addresses.give_back(self._view, found[0].reserved)
            message = again.message
        else:
            message = found.message
        self._intake.leases.add(workload.key)
        message = f"{trouble}, and its lease hasn't begun; {message}"
        decision = None
        if isinstance(candidate, Candidate):
            explanation = Explanation(len(self._snapshot), [], {}, LEASE_AT_RISK, message)
            decision = put_decision(self._view, workload, candidate, explanation, Timing(now, 0.0))
        return plan_at_risk(workload, message, decision, now)

    def _find_again(self, candidate: Candidate, allocation: Item, now: float) -> Commit | Conflict | Waiting:
        workload, spec, request = candidate.workload, spec_of(candidate.workload), candidate.request
        held, began = allocation.spec(AllocationSpec).lease, self._lease.clock.elapsed()
        if spec.reservation is not None:
            return self._bind_within(candidate, now)
        assert held is not None and spec.lease is not None
        found = find_again(self._engine, request, workload.uid, spec.lease, held, spec.grace, now)
        timing = Timing(now, round((self._lease.clock.elapsed() - began) * 1000, 3))
        if isinstance(found, Conflict):
            ahead = spec.lease.mode != "reservation" or held.start >= now
            if not ahead:
                return found
            candidate, preempted = self._preempt(candidate, timing)
            dearer = self._find_dearer(candidate, spec.lease, now)
            return preempted or msgspec.structs.replace(found, message=found.message + dearer)
        base = msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2]))
        explanation = explain(self._engine, base, workload.uid, found.row)
        return self._bind(msgspec.structs.replace(candidate, lease=found.lease), found.row, explanation, timing)

    def _plan_resume(self, workload: Item, allocation: Item, now: float) -> Commit | None:
        """It waits with those that wait for capacity over time, until its node has what it had; after a while, until any has."""
        candidate = read_candidate(self._view, workload, self._strategy, self._intake.silent)
        commit = None
        if isinstance(candidate, Candidate) and self._find_obstacle(candidate) is None:
            commit = plan_resume(self._engine, self._relax(candidate), allocation, now)
        if commit is None:
            self._intake.leases.add(workload.key)
            if not self.batch.migrates:
                commit = plan_resume_elsewhere(
                    self._view, self._engine, workload, allocation, self._strategy, self._intake.silent, now
                )
                self.batch.migrates = commit is not None
        else:
            self.batch.resized.append(allocation.key)
        return commit

    def _relax(self, candidate: Candidate) -> Candidate:
        request, given_up = relax(candidate.request, self._snapshot)
        return msgspec.structs.replace(candidate, request=request, given_up=given_up) if given_up else candidate

    def _lease_openly(self, candidate: Candidate, now: float) -> Candidate:
        """It with its lease, if it has one without an end."""
        asked = spec_of(candidate.workload).lease
        return candidate if asked is None else msgspec.structs.replace(candidate, lease=open_lease(asked, now))

    def _decide(self, candidate: Candidate, now: float) -> Commit | None:
        candidate = self._relax(candidate)
        workload, request = candidate.workload, candidate.request
        lease = spec_of(workload).lease
        if spec_of(workload).reservation is not None:
            return self._decide_within(candidate, now)
        if lease is not None and lease.duration is not None:
            return self._decide_lease(candidate, lease, now)
        standing = self._intake.queue.verdict(request) if lease is None else None
        if standing is not None:
            return self._refuse(candidate, standing, Timing(now, 0.0))
        began = self._lease.clock.elapsed()
        row = self._engine.choose(request, workload.uid)
        explanation = explain(self._engine, request, workload.uid, row)
        skipped = tuple(self._own.skipped(request.strategy))
        if skipped:
            candidate = msgspec.structs.replace(candidate, skipped=skipped)
        timing = Timing(now, round((self._lease.clock.elapsed() - began) * 1000, 3))
        candidate = self._lease_openly(candidate, now)
        if row is None:
            candidate, preempted = self._preempt(candidate, timing)
            if preempted is None and lease is not None and lease.mode == "immediate":
                message = explanation.message + self._find_dearer(candidate, lease, now)
                refused = msgspec.structs.replace(explanation, error=LEASE_CONFLICT, message=message)
                return self._refuse(candidate, refused, timing, sleeps=False)
            return preempted or self._refuse(candidate, explanation, timing)
        return self._bind(candidate, row, explanation, timing)

    def _decide_lease(self, candidate: Candidate, asked: LeaseRequest, now: float) -> Commit | None:
        """The first time at which it fits for all of its lease. A best-effort one waits for that time to come."""
        workload, request, began = candidate.workload, candidate.request, self._lease.clock.elapsed()
        grace, waits = spec_of(workload).grace, asked.mode == "best-effort"
        # One that has waited long is promised the first time that there is.
        later = waits and is_patient(workload.envelope.created_at, now)
        if (held := read_lost(workload, asked, now)) is not None:
            found = find_again(self._engine, request, workload.uid, asked, held, grace, now)
        else:
            found = find_slot(self._engine, request, workload.uid, asked, grace, now, later=later)
        if isinstance(found, Conflict):
            took_ms = round((self._lease.clock.elapsed() - began) * 1000, 3)
            candidate, preempted = self._preempt(candidate, Timing(now, took_ms))
            if preempted is not None:
                return preempted
            error = "insufficientResources" if waits else LEASE_CONFLICT
            message = found.message + self._find_dearer(candidate, asked, now)
            explanation = Explanation(len(self._snapshot), [], {}, error, message, nearest_node=found.node)
            if waits:
                self._intake.leases.add(workload.key)
        else:
            # Its capacity is counted over time, which the explanation of a node's score doesn't know.
            base = msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2]))
            explanation = explain(self._engine, base, workload.uid, found.row)
            candidate = msgspec.structs.replace(candidate, lease=found.lease)
        timing = Timing(now, round((self._lease.clock.elapsed() - began) * 1000, 3))
        if isinstance(found, Conflict):
            return self._refuse(candidate, explanation, timing, sleeps=False)
        return self._bind(candidate, found.row, explanation, timing)

    def _decide_within(self, candidate: Candidate, now: float) -> Commit | None:
        """A place in a slot of its reservation, or what it waits for."""
        found = self._bind_within(candidate, now)
        if isinstance(found, Commit):
            return found
        self._intake.addresses.give_back(self._view, candidate.reserved)
        return self._plan_waiting(candidate.workload, found, now)

    def _bind_within(self, candidate: Candidate, now: float) -> Commit | Waiting:
        workload, began = candidate.workload, self._lease.clock.elapsed()
        found = find_within(self._view, self._engine, candidate, now)
        if isinstance(found, Waiting):
            self._intake.wait_for_reservation(workload)
            return found
        candidate, row, explanation = self._enter(candidate, found)
        timing = Timing(now, round((self._lease.clock.elapsed() - began) * 1000, 3))
        return self._bind(candidate, row, explanation, timing, found.load)

    def _enter(self, candidate: Candidate, place: Within) -> tuple[Candidate, int, Explanation]:
        """It with its slot, the row of its node, and why it is there."""
        uid, request = candidate.workload.uid, without_slot(candidate.request)
        explanation = explain(self._engine, request, uid, place.row)
        chosen = [one for one in explanation.verdicts if one.outcome == "chosen"]  # others have nothing of its slots
        notes = (*candidate.preempts, place.note)
        candidate = msgspec.structs.replace(candidate, lease=place.lease, slot=place.slot, preempts=notes)
        return candidate, place.row, msgspec.structs.replace(explanation, verdicts=chosen)

    def _preempt(self, candidate: Candidate, timing: Timing) -> tuple[Candidate, Commit | None]:
        """It with what its decision says of others, and its placement where it preempts them; None if there is no such place."""
        request, workload, spec = candidate.request, candidate.workload, spec_of(candidate.workload)
        need = read_need(request, workload.uid, spec.lease, spec.grace)
        kept: dict[Allowance, list[str]] = {}
        way = find_way(self._view, self._engine, need, timing.at, self._budgets, kept)
        project = workload.envelope.project
        said = [*(describe_way(way, project) if way is not None else ()), *describe_kept(kept, project)]
        candidate = msgspec.structs.replace(candidate, preempts=tuple(said))
        if way is None:
            return candidate, None
        if way.slot is not None:  # its capacity is counted over time
            candidate = msgspec.structs.replace(candidate, lease=way.slot.lease)
            request = msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2]))
        with giving_way(self._engine, way.victims):
            explanation = explain(self._engine, request, workload.uid, way.row)
            commit = self._bind(candidate, way.row, explanation, timing)
        self.batch.resized += [victim.key for victim in way.victims]
        return candidate, join_victims(self._view, commit, way, workload, timing.at, self._elsewhere_seconds)

    def _find_dearer(self, candidate: Candidate, asked: LeaseRequest, now: float) -> str:
        """What a refused lease could have with a higher priority, as the end of a sentence."""
        if asked.mode == "best-effort":
            return ""
        need = read_need(candidate.request, candidate.workload.uid, asked, spec_of(candidate.workload).grace)
        name = candidate.workload.envelope.project
        project = self._view.get(object_key("project", None, name or ""))
        ceiling = None if project is None else project.spec(ProjectSpec).priority_ceiling
        most = max(asked.priority, MOST_PRIORITY if ceiling is None else ceiling)
        way = find_way(self._view, self._engine, msgspec.structs.replace(need, priority=most), now, self._budgets, {})
        if way is None:
            return ""
        return f"; or with priority {max(v.priority for v in way.victims)}, if these are suspended: {name_victims(way, name)}"

    def _bind(
        self, candidate: Candidate, row: int, explanation: Explanation, timing: Timing, load: Load | None = None
    ) -> Commit:
        """Count the placement in the snapshot, and plan its commit."""
        workload, request = candidate.workload, candidate.request
        node = self._view.find(NODES_BY_UID, self._snapshot.uids[row])[0]
        uid = new_uid()
        allocation = object_key("allocation", None, allocation_name(node.uid, uid))
        load = self._engine.load(request, row) if load is None else load
        if request.groups:
            load = msgspec.structs.replace(load, workload=name_workload(workload.envelope.ref))
        lease = candidate.lease
        if candidate.slot is not None:
            self._snapshot.put_slotted(allocation, node.uid, candidate.slot, request.amounts, load)
        elif lease is not None and lease.end is not None:
            held = Lease(node.uid, lease.prepare_at, lease.end + spec_of(workload).grace, request.amounts[:2])
            self._snapshot.put_leased(allocation, held, request.amounts[2], load)
        else:
            self._snapshot.put_allocation(allocation, node.uid, request.amounts, load)
        if candidate.slot is None:
            self._snapshot.projects.assume(allocation, workload.envelope.project or "", request.amounts, load)
        self.batch.assumed.append(allocation)
        self.batch.reserved += candidate.reserved
        self.batch.attached.update((volume.uid, workload) for volume in candidate.volumes)
        self._engine.last = node.envelope.name
        what = f"{find_kind(workload.envelope.kind).title} '{workload.envelope.name}'"
        line = (
            f"Selected agent '{node.envelope.name}' for {what} by {request.strategy} - "
            f"{describe_choice(self._engine, row)}"
        )
        return plan_placement(self._view, candidate, node, uid, load, explanation, timing, line, self._update_status)

    def _refuse(
        self, candidate: Candidate, explanation: Explanation, timing: Timing, *, sleeps: bool = True
    ) -> Commit | None:
        """Record why it has no place; it ``sleeps`` with all equal requests until nodes have what it lacks."""
        workload = candidate.workload
        self._intake.addresses.give_back(self._view, candidate.reserved)
        if candidate.request.mode == "long-lived" and sleeps:
            self._intake.queue.refuse(workload.key, candidate.request, explanation)
        placed = workload.envelope.condition("Placed")
        if (
            placed is not None
            and placed.reason == explanation.error
            and placed.generation == workload.envelope.generation
        ):
            # Where thousands wait, new figures in their messages are not worth thousands of writes.
            if placed.message == explanation.message or self._rephrased[candidate.request] >= MOST_REPHRASED:
                return None
            self._rephrased[candidate.request] += 1
        return plan_refusal(self._view, candidate, explanation, timing)
