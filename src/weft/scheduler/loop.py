"""Places workloads: takes those that want a place, decides in batches, and commits the decisions.

Reads workloads, nodes, allocations, images, volumes, networks, endpoints; writes allocations, endpoints, decisions, and the
conditions Placed and Addressed. Woken by its intake, which sees every change that could let a workload be placed. All its state
can be read again: a new Scheduler over the same cache continues where another was killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from weft.contracts.policy import Request
from weft.contracts.store import MAX_WRITES
from weft.informer.cache import whole
from weft.informer.commit import Commit
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Item, View
from weft.informer.workloads import gang_of, name_of, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec, allocation_name
from weft.kinds.fields.lease import LEASE_CONFLICT, MOST_PRIORITY, AllocatedLease, LeaseRequest
from weft.kinds.fields.strategy import DEFAULT_STRATEGY
from weft.kinds.node import NODES_BY_UID
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
)
from weft.scheduler.allocation.lease import Conflict, find_slot, has_other_end, plan_extension
from weft.scheduler.allocation.preempt import (
    describe_way,
    find_way,
    giving_way,
    join_victims,
    name_victims,
    read_need,
)
from weft.scheduler.allocation.resize import plan_resize
from weft.scheduler.allocation.resume import is_patient, is_suspended, plan_resume
from weft.scheduler.batches import MOST, Batch, PendingBatches
from weft.scheduler.constraint.relax import relax
from weft.scheduler.constraint.status import plan_constraint_status
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.demand import Demand
from weft.scheduler.engine.explain import Explanation, describe_choice, explain
from weft.scheduler.gang.assembly import assemble_gang
from weft.scheduler.gang.commit import find_excess, join
from weft.scheduler.gang.explain import explain_places, explain_refusal
from weft.scheduler.gang.placement import Member, find_places
from weft.scheduler.gang.search_budget import Budget
from weft.scheduler.intake import KINDS, WATCHED, Intake, is_regrouped, needs_resize
from weft.scheduler.lease.calendar import Lease
from weft.scheduler.node.usage import NodeUsage, ranks_by_usage
from weft.scheduler.own_policies.registry import OwnPolicies, find_fallback
from weft.scheduler.own_policies.status import plan_policy_status
from weft.scheduler.policies import Policies
from weft.scheduler.table.facts import name_workload
from weft.scheduler.table.snapshot import Snapshot, asks_of
from weft.scheduler.workload.request import (
    Candidate,
    Waiting,
    read_candidate,
    read_memberships,
    reserve_addresses,
    wants_place,
)

BATCH = 3 * (MAX_WRITES // 3)  # a placement has three writes
CHECK_WORKERS_EVERY_SECONDS = 0.05  # whether custom policies that are being started are ready
REWRITE_STATUS_SECONDS = 0.1
MOST_REPHRASED = 20  # workloads of a class whose condition gets a new message in one batch; the others keep the old one
_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 5.0


class Scheduler:
    """``run`` decides while ``lease`` is held; ``update_status`` completes the status of a workload that gets a place."""

    def __init__(
        self,
        lease: LeaderLease,
        strategy: str = DEFAULT_STRATEGY,
        *,
        seed: int = 0,
        update_status: StatusUpdate = no_status_update,
    ) -> None:
        self.snapshot = Snapshot()
        self._lease = lease
        self._view: View = lease.cache.view
        self._strategy = strategy
        self._update_status = update_status
        self._own = OwnPolicies(find_fallback(strategy))
        self._engine = Engine(
            self.snapshot,
            seed=seed,
            policies=Policies(self._own.find),
            demand=Demand(lambda: asks_of(self.snapshot), learns=True),
        )
        self.intake = Intake(lease, self._engine, self._own)
        self._usage = NodeUsage(lease.store, lease.clock)
        self._batch = Batch()  # in hand
        self._pending = PendingBatches(lease)
        self._starting: set[str] = set()  # keys of workloads that wait for a worker of a custom policy
        self._rephrased: Counter[Request] = Counter()  # in the batch in hand
        self._assembled: set[str] = set()  # gangs that were decided on in the batch in hand
        self._budget = Budget()  # of time for gangs
        self._pause_seconds = 0.0
        self._rewrite_at = float("inf")

    async def run(self) -> None:
        """Raises LeadershipLost when the lease ends."""
        unsubscribe = self._lease.cache.subscribe(self.intake.notice, WATCHED)
        try:
            self.intake.notice(whole(self._view, KINDS))
            self._engine.last = self._find_last()
            while True:
                if self.intake.questions:
                    await self._answer()
                if self.intake.migrations.wait(self._lease.clock.elapsed()) == 0.0:
                    await self._place_migrations()
                await self._write_status()
                if self._starting and not self._own.starting():
                    self._starting = self.intake.offer_keys(self._starting)
                if self._budget.wait(self._lease.clock.elapsed()) == 0.0:
                    self._budget.owed = self.intake.offer_keys(self._budget.owed)
                if not self.intake.queue.ready and self._pending:
                    await self._land(0)
                elif not self.intake.queue.ready:
                    await self.intake.wake.wait(self._patience())
                else:
                    await self._decide_batch()
                    await self._lease.clock.sleep(self._pause_seconds)  # mostly 0: other tasks get their turn
        finally:
            unsubscribe()
            self._own.close()
            await self._pending.close()

    async def _write_status(self) -> None:
        """Write the status of Constraints and placement policies where it is due. Refused writes are tried again a little
        later: the write that came in between may have changed nothing that makes them due."""
        elapsed, now = self._lease.clock.elapsed(), self._lease.clock.now()
        again = elapsed >= self._rewrite_at
        commits: list[Commit] = []
        if self.intake.take_counts_due() or again:
            commits += plan_constraint_status(self._view, self.snapshot)
        if self._own.take_news() or again:
            commits += plan_policy_status(self._view, self._own, now)
        if commits or again:
            refused = await self._lease.perform(commits)
            self._rewrite_at = elapsed + REWRITE_STATUS_SECONDS if refused else float("inf")

    async def _answer(self) -> None:
        """Answer all open questions. An answer is refused if its question was changed or deleted, which is noticed."""
        await self._usage.refresh(self._view, self.snapshot)
        now = self._lease.clock.now()
        await self._lease.perform(self.intake.questions.plan(self._view, self._engine, self._strategy, now))

    async def _refresh_usage(self) -> None:
        """Read the usage of nodes, if a placement policy ranks by it."""
        if ranks_by_usage(self._view):
            await self._usage.refresh(self._view, self.snapshot)

    async def _place_migrations(self) -> None:
        """Give Migrations their targets."""
        await self._refresh_usage()
        migrations, clock = self.intake.migrations, self._lease.clock
        silent = self.intake.refresh_silent()
        commits = migrations.plan(self._view, self._engine, self._strategy, silent, clock.now(), clock.elapsed())
        await self._lease.perform(commits)
        for key in migrations.assumed:
            self.intake.count(key, self._view.get(key))
        migrations.assumed.clear()
        self.intake.wake_classes()

    async def _decide_batch(self) -> None:
        await self._refresh_usage()
        keys = self.intake.queue.take(BATCH)
        has_gang = any(
            (workload := self._view.get(key)) is not None and spec_of(workload).gang is not None for key in keys
        )
        if has_gang or self._pending.holds(keys):  # the others of the gang aren't in the view yet
            await self._land(0)
        self._batch = Batch(keys)
        commits = self.plan(keys)
        if commits:
            await self._pending.send(self._batch, commits)
        else:
            self._forget(self._batch)
        await self._land(0 if has_gang else MOST - 1)

    async def _land(self, most: int) -> None:
        """Wait until at most so many batches are pending."""
        while len(self._pending) > most:
            landed = await self._pending.land()
            self._forget(landed.batch)
            for commit in landed.failed:
                self.intake.queue.offer(commit.key)
            self.intake.wake_classes()
            self._pause_seconds = (
                min(max(2 * self._pause_seconds, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
                if landed.in_vain
                else 0.0
            )

    def _forget(self, batch: Batch) -> None:
        """Count what is in the view: stored allocations are there by now, the others give their capacity back."""
        for key in batch.assumed:
            if self._view.get(key) is None:
                self.snapshot.drop_allocation(key)
        for key in batch.resized:
            self.intake.count(key, self._view.get(key))
        self.intake.addresses.give_back(self._view, batch.reserved)

    def plan(self, keys: Sequence[str]) -> list[Commit]:
        """Decide on these workloads, one after the other; each sees the placements of those before it."""
        self.intake.refresh_silent()
        self._rephrased.clear()
        self._assembled.clear()
        commits: list[Commit | None] = []
        for key in keys:
            workload = self._view.get(key)
            if workload is not None and spec_of(workload).gang is not None and wants_place(self._view, workload):
                commits += self._plan_gang(workload)
            else:
                commits.append(self._plan_one(key))
        return [commit for commit in commits if commit is not None]

    def _plan_one(self, key: str) -> Commit | None:
        workload = self._view.get(key)
        if workload is None or workload.deleting:
            return None
        now = self._lease.clock.now()
        if not wants_place(self._view, workload):
            return self._plan_placed(workload, now)
        candidate = read_candidate(self._view, workload, self._strategy, self.intake.silent)
        found = candidate if isinstance(candidate, Waiting) else self._make_ready([candidate])
        if isinstance(found, Waiting):
            return self._plan_waiting(workload, found, now)
        return self._decide(found[0], now)

    def _plan_gang(self, workload: Item) -> list[Commit | None]:
        """Decide on all workloads that must be placed together with ``workload``: one commit places them."""
        now = self._lease.clock.now()
        found = assemble_gang(self._view, workload, self._strategy, self.intake.silent)
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
        members = [Member(c.request, c.workload.uid, name_workload(c.workload.envelope.ref)) for c in candidates]
        began = self._lease.clock.elapsed()
        search = self._budget.allows(began)
        joint = find_places(self._engine, members, search=search)
        if joint.searched:
            self._budget.spend(began, self._lease.clock.elapsed())
        if joint.rows is None and not joint.proven and not search:
            self._budget.owed.add(workload.key)
        explain_each = explain_refusal if joint.rows is None else explain_places
        explanations = explain_each(self._engine, members, joint)
        timing = Timing(now, round((self._lease.clock.elapsed() - began) * 1000, 3))
        if joint.rows is None:
            return [
                self._refuse(c, explanation, timing) for c, explanation in zip(candidates, explanations, strict=True)
            ]
        first = len(self._batch.assumed)
        commit = join([self._bind(candidates[m], joint.rows[m], explanations[m], timing) for m in joint.order])
        excess = find_excess(commit)
        if not excess:
            return [commit]
        self._batch.take_back(self.snapshot, first, [volume for each in candidates for volume in each.volumes])
        if any(each.reserved for each in candidates):  # their addresses first, and then all the places together
            return [plan_addresses(each, now) for each in candidates if each.reserved]
        large = Waiting("gangTooLarge", f"the gang's placements don't fit into one commit: {excess}")
        return [plan_waiting(candidate.workload, large, now) for candidate in candidates]

    def _make_ready(self, candidates: list[Candidate]) -> list[Candidate] | Waiting:
        """``candidates`` with an address reserved for each of their NICs, or what one of them must wait for."""
        obstacle = next((found for each in candidates if (found := self._find_obstacle(each)) is not None), None)
        return obstacle or reserve_addresses(self.intake.addresses, self._view, candidates)

    def _find_obstacle(self, candidate: Candidate) -> Waiting | None:
        """What it must wait for: a volume that another workload got in a pending batch, or a worker of its policy."""
        for volume in candidate.volumes:
            other = self._batch.attached.get(volume.uid) or self._pending.attached(volume.uid)
            if other is not None:
                return Waiting("volumeInUse", f"volume {volume.name} is attached to {name_of(other)}")
        if not self._own.prepare(candidate.request.strategy):
            return Waiting("policyStarting", "the placement policy is starting")
        return None

    def _plan_waiting(self, workload: Item, waiting: Waiting, now: float) -> Commit | None:
        if waiting.reason == "policyNotFound":
            self.intake.unruled.add(workload.key)
        if waiting.reason == "policyStarting":
            self._starting.add(workload.key)
        if waiting.address is not None and waiting.address.lasts:
            self.intake.unaddressed.add(workload.key)
        return plan_waiting(workload, waiting, now)

    def _plan_placed(self, workload: Item, now: float) -> Commit | None:
        allocations = self._view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)
        if not allocations:
            return None
        for allocation in allocations:
            if is_suspended(allocation):
                return self._plan_resume(workload, allocation, now)
            if not allocation.deleting and needs_resize(allocation, spec_of(workload)):
                self._batch.resized.append(allocation.key)
                commit = plan_resize(self._view, self.snapshot, workload, allocation, now)
                if commit is None or allocation.key not in {write.key for write in commit.writes}:
                    self.intake.cramped.add(workload.key)
                return commit
            if not allocation.deleting and has_other_end(allocation, spec_of(workload)):
                self._batch.resized.append(allocation.key)
                self.intake.cramped.add(workload.key)
                return plan_extension(self._engine, workload, allocation, now)
            if is_regrouped(allocation, workload):
                self._batch.resized.append(allocation.key)
                return plan_regrouped(workload, allocation, read_memberships(workload))
        return plan_adopted(workload, allocations, now)

    def _plan_resume(self, workload: Item, allocation: Item, now: float) -> Commit | None:
        """It waits with those that wait for capacity over time, until its node has what it had."""
        candidate = read_candidate(self._view, workload, self._strategy, self.intake.silent)
        commit = None
        if isinstance(candidate, Candidate) and self._find_obstacle(candidate) is None:
            commit = plan_resume(self._engine, self._relax(candidate), allocation, now)
        if commit is None:
            self.intake.leases.add(workload.key)
        else:
            self._batch.resized.append(allocation.key)
        return commit

    def _relax(self, candidate: Candidate) -> Candidate:
        request, given_up = relax(candidate.request, self.snapshot)
        return msgspec.structs.replace(candidate, request=request, given_up=given_up) if given_up else candidate

    def _decide(self, candidate: Candidate, now: float) -> Commit | None:
        candidate = self._relax(candidate)
        workload, request = candidate.workload, candidate.request
        lease = spec_of(workload).lease
        if lease is not None and lease.duration is not None:
            return self._decide_lease(candidate, lease, now)
        standing = self.intake.queue.verdict(request) if lease is None else None
        if standing is not None:
            return self._refuse(candidate, standing, Timing(now, 0.0))
        began = self._lease.clock.elapsed()
        row = self._engine.choose(request, workload.uid)
        explanation = explain(self._engine, request, workload.uid, row)
        skipped = tuple(self._own.skipped(request.strategy))
        if skipped:
            candidate = msgspec.structs.replace(candidate, skipped=skipped)
        timing = Timing(now, round((self._lease.clock.elapsed() - began) * 1000, 3))
        if lease is not None:  # without an end
            allocated = AllocatedLease(
                mode=lease.mode or "best-effort",
                start=now,
                prepare_at=now,
                preemptible=bool(lease.preemptible),
                priority=lease.priority,
            )
            candidate = msgspec.structs.replace(candidate, lease=allocated)
        if row is None:
            preempted = self._preempt(candidate, timing)
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
        found = find_slot(self._engine, request, workload.uid, asked, grace, now, later=later)
        if isinstance(found, Conflict):
            took_ms = round((self._lease.clock.elapsed() - began) * 1000, 3)
            if (preempted := self._preempt(candidate, Timing(now, took_ms))) is not None:
                return preempted
            error = "insufficientResources" if waits else LEASE_CONFLICT
            message = found.message + self._find_dearer(candidate, asked, now)
            explanation = Explanation(len(self.snapshot), [], {}, error, message, nearest_node=found.node)
            if waits:
                self.intake.leases.add(workload.key)
        else:
            # Its capacity is counted over time, which the explanation of a node's score doesn't know.
            base = msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2]))
            explanation = explain(self._engine, base, workload.uid, found.row)
            candidate = msgspec.structs.replace(candidate, lease=found.lease)
        timing = Timing(now, round((self._lease.clock.elapsed() - began) * 1000, 3))
        if isinstance(found, Conflict):
            return self._refuse(candidate, explanation, timing, sleeps=False)
        return self._bind(candidate, found.row, explanation, timing)

    def _preempt(self, candidate: Candidate, timing: Timing) -> Commit | None:
        """Its placement where it preempts others; None if there is no such place."""
        request, workload, spec = candidate.request, candidate.workload, spec_of(candidate.workload)
        need = read_need(request, workload.uid, spec.lease, spec.grace)
        way = find_way(self._view, self._engine, need, timing.at)
        if way is None:
            return None
        candidate = msgspec.structs.replace(candidate, preempts=tuple(describe_way(way)))
        if way.slot is not None:  # its capacity is counted over time
            candidate = msgspec.structs.replace(candidate, lease=way.slot.lease)
            request = msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2]))
        with giving_way(self._engine, way.victims):
            explanation = explain(self._engine, request, workload.uid, way.row)
            commit = self._bind(candidate, way.row, explanation, timing)
        self._batch.resized += [victim.key for victim in way.victims]
        return join_victims(self._view, commit, way, workload, timing.at)

    def _find_dearer(self, candidate: Candidate, asked: LeaseRequest, now: float) -> str:
        """What a refused lease could have with a higher priority, as the end of a sentence."""
        if asked.mode == "best-effort":
            return ""
        need = read_need(candidate.request, candidate.workload.uid, asked, spec_of(candidate.workload).grace)
        way = find_way(self._view, self._engine, msgspec.structs.replace(need, priority=MOST_PRIORITY), now)
        if way is None:
            return ""
        return f"; or with priority {max(v.priority for v in way.victims)}, if these are suspended: {name_victims(way)}"

    def _bind(self, candidate: Candidate, row: int, explanation: Explanation, timing: Timing) -> Commit:
        """Count the placement in the snapshot, and plan its commit."""
        workload, request = candidate.workload, candidate.request
        node = self._view.find(NODES_BY_UID, self.snapshot.uids[row])[0]
        uid = new_uid()
        allocation = object_key("allocation", None, allocation_name(node.uid, uid))
        load = self._engine.load(request, row)
        if request.groups:
            load = msgspec.structs.replace(load, workload=name_workload(workload.envelope.ref))
        lease = candidate.lease
        if lease is not None and lease.end is not None:
            held = Lease(node.uid, lease.prepare_at, lease.end + spec_of(workload).grace, request.amounts[:2])
            self.snapshot.put_leased(allocation, held, request.amounts[2], load)
        else:
            self.snapshot.put_allocation(allocation, node.uid, request.amounts, load)
        self._batch.assumed.append(allocation)
        self._batch.reserved += candidate.reserved
        self._batch.attached.update((volume.uid, workload) for volume in candidate.volumes)
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
        self.intake.addresses.give_back(self._view, candidate.reserved)
        if candidate.request.mode == "long-lived" and sleeps:
            self.intake.queue.refuse(workload.key, candidate.request, explanation)
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

    def _patience(self) -> float | None:
        """In how many seconds to run again even if nothing changes; None: never."""
        elapsed = self._lease.clock.elapsed()
        waits = [self.intake.refresh(), self._budget.wait(elapsed), self.intake.migrations.wait(elapsed)]
        if self._rewrite_at < float("inf"):
            waits.append(max(0.0, self._rewrite_at - elapsed))
        if self._own.starting() or self._starting:
            waits.append(CHECK_WORKERS_EVERY_SECONDS)
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _find_last(self) -> str | None:
        newest = max(self._view.of_kind("allocation").values(), key=lambda i: i.envelope.created_at, default=None)
        return None if newest is None else newest.spec(AllocationSpec).node
