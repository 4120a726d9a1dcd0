"""Counts what was found in the snapshot, so that the next decision sees it, and plans its commits."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence

import msgspec

from weft.contracts.policy import Request
from weft.informer.commit import Commit
from weft.informer.view import View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import AllocationSpec, allocation_name
from weft.kinds.node import NODES_BY_UID
from weft.kinds.registry import find_kind
from weft.objects.identity import new_uid, object_key
from weft.scheduler.allocation.bind import (
    StatusUpdate,
    Timing,
    plan_addresses,
    plan_placement,
    plan_refusal,
    plan_waiting,
)
from weft.scheduler.allocation.count import read_entry
from weft.scheduler.allocation.lease import join_replanned, plan_shortened
from weft.scheduler.allocation.preempt import join_victims, preempting
from weft.scheduler.allocation.promise import withdraw
from weft.scheduler.allocation.replan import Replanned
from weft.scheduler.batches import Batch
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import describe_choice
from weft.scheduler.gang.commit import find_excess, join
from weft.scheduler.intake import Intake
from weft.scheduler.placement.found import Placement, Refusal, ReplannedPlace
from weft.scheduler.table.facts import Load, amounts_on, name_workload
from weft.scheduler.workload.request import Waiting

MOST_REPHRASED = 20  # workloads of a class whose condition gets a new message in one batch; the others keep the old one


class Binder:
    """``batch`` is the one in hand: ``begin`` starts another."""

    def __init__(
        self, view: View, engine: Engine, intake: Intake, update_status: StatusUpdate, elsewhere_seconds: float
    ) -> None:
        self.batch = Batch()
        self._view = view
        self._engine = engine
        self._snapshot = engine.snapshot
        self._intake = intake
        self._update_status = update_status
        self._elsewhere_seconds = elsewhere_seconds
        self._rephrased: Counter[Request] = Counter()  # in the batch in hand

    def begin(self, keys: Sequence[str]) -> None:
        self.batch = Batch(keys)
        self._rephrased.clear()

    @property
    def count(self) -> int:
        """How many places the batch has given and changed."""
        return len(self.batch.assumed) + len(self.batch.resized)

    def bind_all(self, places: Sequence[Placement], timing: Timing) -> list[Commit]:
        """One commit that places all of them; in several steps where that is too large."""
        first, candidates = len(self.batch.assumed), [place.candidate for place in places]
        commits = [self.bind(place, timing) for place in places]
        if len(commits) == 1:
            return commits
        commit = join(commits)
        excess = find_excess(commit)
        if not excess:
            return [commit]
        self.batch.take_back(self._snapshot, first, [volume for each in candidates for volume in each.volumes])
        if any(each.reserved for each in candidates):  # their addresses first, and then all the places together
            return [plan_addresses(each, timing.at) for each in candidates if each.reserved]
        large = Waiting("gangTooLarge", f"the gang's placements don't fit into one commit: {excess}")
        waiting = [plan_waiting(each.workload, large, timing.at) for each in candidates]
        return [commit for commit in waiting if commit is not None]

    def bind(self, place: Placement, timing: Timing) -> Commit:
        """Count the placement in the snapshot, and plan its commit."""
        candidate, row, way = place.candidate, place.row, place.way
        node = self._view.find(NODES_BY_UID, self._snapshot.uids[row])[0]
        uid = new_uid()
        with preempting(self._engine, way.victims) if way is not None else contextlib.nullcontext():
            load = self._count(place, node.uid, uid)
            self._engine.last = node.envelope.name
            what = f"{find_kind(candidate.workload.envelope.kind).title} '{candidate.workload.envelope.name}'"
            line = (
                f"Selected agent '{node.envelope.name}' for {what} by {candidate.request.strategy} - "
                f"{describe_choice(self._engine, row)}"
            )
        self.batch.reserved += candidate.reserved
        self.batch.attached.update((volume.uid, candidate.workload) for volume in candidate.volumes)
        self.batch.replans = self.batch.replans or bool(place.others)
        commit = plan_placement(
            self._view, candidate, node, uid, load, place.explanation, timing, line, self._update_status
        )
        for other in place.others:
            commit = self._replan(commit, other, timing)
        if way is None:
            return commit
        self.batch.resized += [victim.key for victim in way.victims]
        return join_victims(self._view, commit, way, candidate.workload, timing.at, self._elsewhere_seconds)

    def _replan(self, commit: Commit, other: ReplannedPlace, timing: Timing) -> Commit:
        """``commit`` with the place that a lease gets instead of its own. Until that is stored both are counted."""
        one = other.lease
        if other.place is not None:
            elsewhere, why = self.bind(other.place, timing), "another lease needs its place"
            return join([commit, withdraw(self._view, elsewhere, one.workload, one.allocation, why, timing.at)])
        self._count_replanned(one, timing.at)
        return join_replanned(commit, one.workload, one.allocation, one.lease, timing.at)

    def shorten(self, one: Replanned, now: float) -> Commit:
        """Give a lease times at which it is done sooner, on its node."""
        self.batch.replans = True
        self._count_replanned(one, now)
        return plan_shortened(one.workload, one.allocation, one.lease, now)

    def _count_replanned(self, one: Replanned, now: float) -> None:
        """Count both its former and its other times until these are stored."""
        spec = one.allocation.spec(AllocationSpec)
        amounts = amounts_on(spec, spec.resources)
        name = f"{one.allocation.key} replanned"
        self._snapshot.put_leased(name, read_entry(spec.node_uid, one.lease, spec.grace_seconds, amounts[:2], now), 0)
        self.batch.assumed.append(name)

    def refuse(self, refusal: Refusal, timing: Timing) -> Commit | None:
        """Record why it has no place."""
        candidate, explanation, workload = refusal.candidate, refusal.explanation, refusal.candidate.workload
        self._intake.addresses.give_back(self._view, candidate.reserved)
        if refusal.is_over_time:
            self._intake.leases.add(workload.key)
        if candidate.request.mode == "long-lived" and refusal.sleeps:
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

    def _count(self, place: Placement, node_uid: str, uid: str) -> Load:
        """Count from now on the load of its allocation on its node."""
        candidate, request, snapshot = place.candidate, place.candidate.request, self._snapshot
        workload, lease = candidate.workload, candidate.lease
        allocation = object_key("allocation", None, allocation_name(node_uid, uid))
        load = self._engine.load(request, place.row) if place.load is None else place.load
        if request.groups:
            load = msgspec.structs.replace(load, workload=name_workload(workload.envelope.ref))
        if candidate.slot is not None:
            snapshot.put_slotted(allocation, node_uid, candidate.slot, request.amounts, load)
        elif lease is not None and lease.end is not None:
            entry = read_entry(node_uid, lease, spec_of(workload).grace, request.amounts[:2], lease.prepare_at)
            snapshot.put_leased(allocation, entry, request.amounts[2], load)
        else:
            snapshot.put_allocation(allocation, node_uid, request.amounts, load)
        if candidate.slot is None:
            snapshot.projects.assume(allocation, workload.envelope.project or "", request.amounts, load)
        self.batch.assumed.append(allocation)
        return load
