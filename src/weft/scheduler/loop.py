"""Places VMs: takes those that want a place, decides in batches, and commits what it decided.

Reads VMs, nodes, allocations, images, volumes, networks, endpoints; writes allocations, decisions, and the condition
Placed. Woken by any change of those that could let a VM be placed; it sleeps otherwise. It keeps nothing but what it can
read again: a new Scheduler over the same cache goes on where another was killed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from weft.client.cache import whole
from weft.client.commit import Commit
from weft.client.indexes import (
    ALLOCATIONS_BY_WORKLOAD,
    NODES_BY_UID,
    VMS_BY_CONSTRAINT,
    VMS_BY_GANG,
    VMS_BY_IMAGE,
    VMS_BY_UID,
    VMS_BY_VOLUME,
    name_gang,
)
from weft.client.silence import find_silent
from weft.client.term import Term
from weft.client.view import Changed, Item, View
from weft.client.wake import Wake
from weft.contracts.policy import Request
from weft.kinds.allocation import AllocationReport, AllocationSpec, account, allocation_name
from weft.kinds.fit import find_fit
from weft.kinds.image import ImageStatus
from weft.kinds.node import NodeReport, read_orphan
from weft.kinds.strategy import DEFAULT_STRATEGY, read_strategy
from weft.kinds.vm import VmSpec
from weft.objects.identity import new_uid, object_key
from weft.scheduler.affinity import depends_on
from weft.scheduler.bind import Timing, plan_adopted, plan_placement, plan_refusal, plan_regrouped, plan_waiting
from weft.scheduler.cycle import Engine
from weft.scheduler.explain import Explanation, describe_choice, explain
from weft.scheduler.facts import amounts_of, load_of, name_workload
from weft.scheduler.health import plan_health, prepare_policies
from weft.scheduler.joint.budget import Budget
from weft.scheduler.joint.gang import Member, find_places
from weft.scheduler.joint.join import find_excess, join
from weft.scheduler.joint.muster import muster
from weft.scheduler.joint.tell import explain_places, explain_refusal
from weft.scheduler.nodes import read_node
from weft.scheduler.outlook import Demand
from weft.scheduler.own.policies import OwnPolicies, find_fallback
from weft.scheduler.policies import Policies
from weft.scheduler.prefer import relax
from weft.scheduler.questions import QUESTIONS, Questions
from weft.scheduler.queue import Queue
from weft.scheduler.refit import plan_refit
from weft.scheduler.request import Candidate, Waiting, is_looked_at, read_candidate, read_memberships, wants_place
from weft.scheduler.snapshot import Snapshot, asks_of
from weft.scheduler.standing import plan_standing

BATCH = 200
REFRESH_EVERY_SECONDS = 5.0
LISTEN_EVERY_SECONDS = 1.0  # whether nodes that are silent after a restore are waited for no more
LOOK_AT_WORKERS_EVERY_SECONDS = 0.05  # whether own policies that are started are ready
RETOLD = 20  # of a class whose verdict is worded anew; the others keep the words they have
_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 5.0


def default_strategy() -> str:
    """The cluster's strategy: SCHEDULING_STRATEGY, else least_loaded. Raises InvalidInput."""
    return read_strategy(os.environ.get("SCHEDULING_STRATEGY") or DEFAULT_STRATEGY, "SCHEDULING_STRATEGY")


class Scheduler:
    """``run`` decides for as long as ``term`` lasts."""

    def __init__(self, term: Term, strategy: str = DEFAULT_STRATEGY, *, seed: int = 0) -> None:
        self.snapshot = Snapshot()
        self._term = term
        self._view: View = term.cache.view
        self._strategy = strategy
        self._own = OwnPolicies(find_fallback(strategy))
        self._engine = Engine(
            self.snapshot,
            seed=seed,
            policies=Policies(self._own.find),
            demand=Demand(lambda: asks_of(self.snapshot), learns=True),
        )
        self._queue = Queue()
        self._wake = Wake(term.clock)
        self._assumed: list[str] = []  # keys of allocations in commits whose outcome isn't known yet
        self._resized: list[str] = []  # keys of allocations that such commits change
        self._cramped: set[str] = set()  # keys of VMs that wait for room to grow where they run
        self._unruled: set[str] = set()  # keys of VMs that wait for a placement policy
        self._starting: set[str] = set()  # keys of VMs that wait for a worker of an own policy
        self._attached: dict[str, Item] = {}  # volume uid → the VM of the batch in hand that got it
        self._silent: list[str] = []
        self._questions = Questions()
        self._retold: Counter[Request] = Counter()  # in the batch in hand
        self._mustered: set[str] = set()  # gangs that were decided on in the batch in hand
        self._budget = Budget()  # of time for gangs
        self._counts_due = True  # of nodes that meet each Constraint
        self._nodes_moved = False  # since verdicts were last refreshed
        self._refresh_at = 0.0
        self._pause_seconds = 0.0

    async def run(self) -> None:
        """Raises TermLost when the term ends."""
        unsubscribe = self._term.cache.subscribe(self.notice)
        try:
            self.notice(whole(self._view, ("node", "allocation", "vm", "placementpolicy", *QUESTIONS)))
            self._engine.last = self._find_last()
            while True:
                if self._questions:
                    await self._answer()
                if self._counts_due:
                    self._counts_due = False
                    await self._term.perform(plan_standing(self._view, self.snapshot))
                if self._own.take_news():
                    await self._term.perform(plan_health(self._view, self._own, self._term.clock.now()))
                if self._starting and not self._own.starting():
                    self._starting = self._offer_keys(self._starting)
                if self._budget.wait(self._term.clock.elapsed()) == 0.0:
                    self._budget.owed = self._offer_keys(self._budget.owed)
                if not self._queue.ready:
                    await self._wake.wait(self._refresh())
                    continue
                await self._decide_batch()
                await self._term.clock.sleep(self._pause_seconds)  # none, mostly: then others get their turn
        finally:
            unsubscribe()
            self._own.close()

    def notice(self, changes: Sequence[Changed]) -> None:
        """Bring the snapshot up to date, and queue the VMs that these changes may let be placed."""
        for change in changes:
            match change.kind:
                case "vm":
                    self._notice_vm(change)
                case "allocation":
                    self._notice_allocation(change)
                case "node":
                    self._notice_node(change)
                case "image":
                    if _moved(change, lambda item: item.status(ImageStatus).phase):
                        self._offer_all(self._view.find(VMS_BY_IMAGE, change.key))
                case "constraint":
                    if _moved(change, lambda item: (item.uid, item.envelope.generation, item.deleting)):
                        self._offer_all(self._view.find(VMS_BY_CONSTRAINT, change.key))
                        self._counts_due = True
                        self._wake.ring()
                case "project" | "placementpolicy":
                    if change.kind == "placementpolicy" and change.new is not None:
                        prepare_policies(change.new, self._own)
                        self._wake.ring()
                    self._unruled = self._offer_keys(self._unruled)
                case "volume":
                    self._offer_all(self._view.find(VMS_BY_VOLUME, change.key))
                case "recommendation" | "report":
                    self._questions.notice(change)
                    self._wake.ring()
        self._wake_classes()

    async def _answer(self) -> None:
        """Answer what is asked. An answer that can't be written had its question taken away, or changed: that is noticed."""
        now = self._term.clock.now()
        await self._term.perform(self._questions.plan(self._view, self._engine, self._strategy, now))

    async def _decide_batch(self) -> None:
        commits = self.plan(self._queue.take(BATCH))
        failed = await self._term.perform(commits) if commits else []
        for key in self._assumed:
            # What went through is in the view by now and counted; what did not gives its room back.
            if self._view.get(key) is None:
                self.snapshot.drop_allocation(key)
        for key in self._resized:
            self._count(key, self._view.get(key))
        self._assumed.clear()
        self._resized.clear()
        self._attached.clear()
        for commit in failed:
            self._queue.offer(commit.key)
        self._wake_classes()
        if not failed or len(failed) < len(commits):
            self._pause_seconds = 0.0
        else:
            self._pause_seconds = min(max(2 * self._pause_seconds, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)

    def plan(self, keys: Sequence[str]) -> list[Commit]:
        """Decide on these VMs, one after the other, each seeing what those before it were given."""
        self._silent = find_silent(self._term.cache)
        self._retold.clear()
        self._mustered.clear()
        commits: list[Commit | None] = []
        for key in keys:
            vm = self._view.get(key)
            if vm is not None and vm.spec(VmSpec).gang is not None and wants_place(self._view, vm):
                commits += self._plan_gang(vm)
            else:
                commits.append(self._plan_one(key))
        return [commit for commit in commits if commit is not None]

    def _plan_one(self, key: str) -> Commit | None:
        vm = self._view.get(key)
        if vm is None or vm.deleting:
            return None
        now = self._term.clock.now()
        if not wants_place(self._view, vm):
            return self._plan_placed(vm, now)
        candidate = read_candidate(self._view, vm, self._strategy, self._silent)
        if isinstance(candidate, Candidate):
            candidate = self._find_obstacle(candidate) or candidate
        if isinstance(candidate, Waiting):
            return self._plan_waiting(vm, candidate, now)
        return self._decide(candidate, now)

    def _plan_gang(self, vm: Item) -> list[Commit | None]:
        """Decide on all that are to be placed together with ``vm``: their places are one commit."""
        now = self._term.clock.now()
        found = muster(self._view, vm, self._strategy, self._silent)
        if isinstance(found, list):
            found = next((taken for each in found if (taken := self._find_obstacle(each)) is not None), found)
        if isinstance(found, Waiting):
            return [self._plan_waiting(vm, found, now)]
        if len(found) == 1:
            return [self._decide(found[0], now)]
        name = name_gang(vm)
        if name in self._mustered:
            return []
        self._mustered.add(name)
        candidates = [self._relax(candidate) for candidate in found]
        members = [Member(c.request, c.vm.uid, name_workload(c.vm.envelope.ref)) for c in candidates]
        began = self._term.clock.elapsed()
        search = self._budget.allows(began)
        joint = find_places(self._engine, members, search=search)
        if joint.searched:
            self._budget.spend(began, self._term.clock.elapsed())
        if joint.rows is None and not joint.proven and not search:
            self._budget.owed.add(vm.key)
        tell = explain_refusal if joint.rows is None else explain_places
        told = tell(self._engine, members, joint)
        timing = Timing(now, round((self._term.clock.elapsed() - began) * 1000, 3))
        if joint.rows is None:
            return [self._refuse(c, explanation, timing) for c, explanation in zip(candidates, told, strict=True)]
        first = len(self._assumed)
        commit = join([self._bind(candidates[m], joint.rows[m], told[m], timing) for m in joint.order])
        excess = find_excess(commit)
        if not excess:
            return [commit]
        for key in self._assumed[first:]:
            self.snapshot.drop_allocation(key)
        del self._assumed[first:]
        for volume in (volume for candidate in candidates for volume in candidate.volumes):
            self._attached.pop(volume.uid, None)
        large = Waiting("gangTooLarge", f"its gang's places can't be written at once: {excess}")
        return [plan_waiting(candidate.vm, large, now) for candidate in candidates]

    def _find_obstacle(self, candidate: Candidate) -> Waiting | None:
        """What it must wait for: what another of the batch in hand got, or a worker of its policy."""
        for volume in candidate.volumes:
            other = self._attached.get(volume.uid)
            if other is not None:
                return Waiting("volumeInUse", f"volume {volume.name} is attached to vm/{other.envelope.name}")
        if not self._own.prepare(candidate.request.strategy):
            return Waiting("policyStarting", "its placement policy is being started")
        return None

    def _plan_waiting(self, vm: Item, waiting: Waiting, now: float) -> Commit | None:
        if waiting.reason == "policyNotFound":
            self._unruled.add(vm.key)
        if waiting.reason == "policyStarting":
            self._starting.add(vm.key)
        return plan_waiting(vm, waiting, now)

    def _plan_placed(self, vm: Item, now: float) -> Commit | None:
        allocations = self._view.find(ALLOCATIONS_BY_WORKLOAD, vm.uid)
        if not allocations:
            return None
        for allocation in allocations:
            if not allocation.deleting and _is_unfit(allocation, vm.spec(VmSpec)):
                self._resized.append(allocation.key)
                commit = plan_refit(self._view, self.snapshot, vm, allocation, now)
                if commit is None or allocation.key not in {write.key for write in commit.writes}:
                    self._cramped.add(vm.key)
                return commit
            if _is_regrouped(allocation, vm):
                self._resized.append(allocation.key)
                return plan_regrouped(vm, allocation, read_memberships(vm))
        return plan_adopted(vm, allocations, now)

    def _relax(self, candidate: Candidate) -> Candidate:
        request, given_up = relax(candidate.request, self.snapshot)
        return msgspec.structs.replace(candidate, request=request, given_up=given_up) if given_up else candidate

    def _decide(self, candidate: Candidate, now: float) -> Commit | None:
        candidate = self._relax(candidate)
        vm, request = candidate.vm, candidate.request
        standing = self._queue.verdict(request)
        if standing is not None:
            return self._refuse(candidate, standing, Timing(now, 0.0))
        began = self._term.clock.elapsed()
        row = self._engine.choose(request, vm.uid)
        explanation = explain(self._engine, request, vm.uid, row)
        skipped = tuple(self._own.skipped(request.strategy))
        if skipped:
            candidate = msgspec.structs.replace(candidate, skipped=skipped)
        timing = Timing(now, round((self._term.clock.elapsed() - began) * 1000, 3))
        if row is None:
            return self._refuse(candidate, explanation, timing)
        return self._bind(candidate, row, explanation, timing)

    def _bind(self, candidate: Candidate, row: int, explanation: Explanation, timing: Timing) -> Commit:
        """Count it as there, and write it down."""
        vm, request = candidate.vm, candidate.request
        node = self._view.find(NODES_BY_UID, self.snapshot.uids[row])[0]
        uid = new_uid()
        allocation = object_key("allocation", None, allocation_name(node.uid, uid))
        load = self._engine.load(request, row)
        if request.groups:
            load = msgspec.structs.replace(load, workload=name_workload(vm.envelope.ref))
        self.snapshot.put_allocation(allocation, node.uid, request.amounts, load)
        self._assumed.append(allocation)
        self._attached.update((volume.uid, vm) for volume in candidate.volumes)
        self._engine.last = node.envelope.name
        line = (
            f"Selected agent '{node.envelope.name}' for VM '{vm.envelope.name}' by {request.strategy} - "
            f"{describe_choice(self._engine, row)}"
        )
        return plan_placement(self._view, candidate, node, uid, load, explanation, timing, line)

    def _refuse(self, candidate: Candidate, explanation: Explanation, timing: Timing) -> Commit | None:
        vm = candidate.vm
        if candidate.request.mode == "long-lived":
            self._queue.refuse(vm.key, candidate.request, explanation)
        placed = vm.envelope.condition("Placed")
        if placed is not None and placed.reason == explanation.error and placed.generation == vm.envelope.generation:
            # Said already. With thousands that wait, figures that moved are not worth thousands of writes.
            if placed.message == explanation.message or self._retold[candidate.request] >= RETOLD:
                return None
            self._retold[candidate.request] += 1
        return plan_refusal(self._view, candidate, explanation, timing)

    def _notice_vm(self, change: Changed) -> None:
        vm = change.new
        if vm is None or vm.deleting:
            self._queue.forget(change.key)
            self._offer_gang(change.item)
        elif _moved(change, _wish_of):
            self._offer(vm)
            self._offer_gang(vm)

    def _offer_gang(self, vm: Item) -> None:
        """Whom it was to be placed with, or waits until they are, may have something new to hear."""
        if vm.spec(VmSpec).gang is not None:
            self._offer_all(self._view.find(VMS_BY_GANG, name_gang(vm)))

    def _notice_allocation(self, change: Changed) -> None:
        self._count(change.key, change.new)
        if change.old is None or change.new is None or _moved(change, lambda item: item.report(AllocationReport).room):
            for vm in self._view.find(VMS_BY_UID, change.item.spec(AllocationSpec).workload.uid):
                self._offer(vm)
                self._offer_gang(vm)

    def _count(self, key: str, allocation: Item | None) -> None:
        if allocation is None:
            self.snapshot.drop_allocation(key)
        else:
            spec = allocation.spec(AllocationSpec)
            self.snapshot.put_allocation(
                key,
                spec.node_uid,
                amounts_of(account(spec, allocation.report(AllocationReport))),
                load_of(spec),
            )

    def _refresh(self) -> float | None:
        """Have sleeping classes decided anew if nodes are others than they were told of: not all too often. Returns in
        how many seconds to call again, None if there is no need."""
        self._hear()
        patience = LISTEN_EVERY_SECONDS if self._silent else None
        if self._own.starting() or self._starting:
            patience = LOOK_AT_WORKERS_EVERY_SECONDS
        owed = self._budget.wait(self._term.clock.elapsed())
        if owed is not None:
            patience = owed if patience is None else min(owed, patience)
        if not self._nodes_moved:
            return patience
        wait = self._refresh_at - self._term.clock.elapsed()
        if wait > 0:
            return wait if patience is None else min(wait, patience)
        self._nodes_moved = False
        self._counts_due = True
        self._refresh_at = self._term.clock.elapsed() + REFRESH_EVERY_SECONDS
        for request in self._queue.asleep():
            self._queue.wake(request)
        if self._queue.ready or self._view.of_kind("constraint"):
            self._wake.ring()
        return patience

    def _offer_keys(self, keys: set[str]) -> set[str]:
        """Offer the VMs of ``keys``; returns those left: none."""
        if keys:
            self._offer_all(vm for key in sorted(keys) if (vm := self._view.get(key)) is not None)
            self._wake.ring()
        return set()

    def _hear(self) -> None:
        """Offer all VMs again once no node is waited for any more."""
        if self._silent and not find_silent(self._term.cache):
            self._silent = []
            self._offer_all(self._view.of_kind("vm").values())
            if self._queue.ready:
                self._wake.ring()

    def _notice_node(self, change: Changed) -> None:
        if _moved(change, read_node):
            self._nodes_moved = True
            self._wake.ring()
        if change.new is None:
            self.snapshot.drop_node(change.item.uid)
        else:
            if change.old is not None and change.old.uid != change.new.uid:
                self.snapshot.drop_node(change.old.uid)
            self.snapshot.put_node(read_node(change.new))
        if _moved(change, lambda item: item.report(NodeReport).orphans):
            for item in (change.old, change.new):
                for text in item.report(NodeReport).orphans if item is not None else ():
                    orphan = read_orphan(text)
                    vm = self._view.get(orphan.key) if orphan is not None else None
                    if vm is not None:
                        self._offer(vm)
        self._hear()

    def _offer(self, vm: Item) -> None:
        """Queue a VM if there is something to decide or to say about it."""
        placed, wish = vm.envelope.condition("Placed"), vm.spec(VmSpec)
        said = placed is not None and placed.status == "True"
        allocations = self._view.find(ALLOCATIONS_BY_WORKLOAD, vm.uid)
        to_do = any(not said or _is_unfit(item, wish) or _is_regrouped(item, vm) for item in allocations)
        if to_do or wants_place(self._view, vm):
            self._queue.offer(vm.key)
        else:
            self._queue.forget(vm.key)

    def _offer_all(self, vms: Iterable[Item]) -> None:
        for vm in vms:
            self._offer(vm)

    def _wake_classes(self) -> None:
        snapshot = self.snapshot
        if snapshot.improved:
            uids = [uid for uid in snapshot.improved if snapshot.index_of(uid) is not None]
            snapshot.improved.clear()
            cramped, self._cramped = self._cramped, set()
            self._offer_all(vm for key in sorted(cramped) if (vm := self._view.get(key)) is not None)
            rows = [row for uid in uids if (row := snapshot.index_of(uid)) is not None]
            if rows:
                most = np.max(snapshot.capacity[:, rows] - snapshot.allocated[:, rows], axis=1)
                cpu, memory, disk = (int(amount) for amount in most)
                for request in self._queue.asleep():
                    wanted = request.amounts
                    if wanted[0] <= cpu and wanted[1] <= memory and wanted[2] <= disk:
                        if self._engine.may_fit(request, uids):
                            self._queue.wake(request)
        groups = snapshot.groups.take_moved()
        if groups:
            for request in self._queue.asleep():
                if depends_on(request, groups):
                    self._queue.wake(request)
        if self._queue.ready:
            self._wake.ring()

    def _find_last(self) -> str | None:
        newest = max(self._view.of_kind("allocation").values(), key=lambda i: i.envelope.created_at, default=None)
        return None if newest is None else newest.spec(AllocationSpec).node


def _moved(change: Changed, read: Callable[[Item], object]) -> bool:
    """Whether what ``read`` gives is new."""
    return change.old is None or change.new is None or read(change.old) != read(change.new)


def _is_unfit(allocation: Item, wish: VmSpec) -> bool:
    """Whether the place is to be changed to what its VM asks for now."""
    return bool(find_fit(allocation.spec(AllocationSpec), wish, allocation.report(AllocationReport)))


def _is_regrouped(allocation: Item, vm: Item) -> bool:
    """Whether its VM is of other groups by now."""
    return allocation.spec(AllocationSpec).memberships != read_memberships(vm)


def _wish_of(vm: Item) -> object:
    """What of a VM bears on its placement."""
    addressed = vm.envelope.condition("Addressed")
    return (vm.uid, vm.envelope.generation, addressed and (addressed.status, addressed.generation), is_looked_at(vm))
