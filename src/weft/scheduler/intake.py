"""The scheduler's intake: counts every change in the snapshot, and queues the workloads that may be placed after it.

Reads the changes of workloads, nodes, allocations, images, volumes, constraints, policies and questions; writes no objects. The
loop takes from the queue, and decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from weft.contracts.policy import Request
from weft.contracts.wakeup import Wake
from weft.informer.addresses import AddressBook, which_joins
from weft.informer.disruption.budgets import is_running
from weft.informer.leader_lease import LeaderLease
from weft.informer.silent_nodes import find_silent, may_be_silent
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import count_starts, gang_of, list_workloads, record_of, spec_of
from weft.kinds.allocation import (
    ALLOCATIONS_BY_NODE,
    ALLOCATIONS_BY_SLOT,
    ALLOCATIONS_BY_WORKLOAD,
    LOCAL,
    PREEMPTIBLE,
    AllocationReport,
    AllocationSpec,
    is_lost,
    is_slot,
    slot_key,
)
from weft.kinds.disruption_budget import DISRUPTION_BUDGET
from weft.kinds.fields.lease import PATIENCE_SECONDS
from weft.kinds.image import ImageStatus
from weft.kinds.node import NODES_BY_POOL, NodeActions, NodeReport, NodeStatus, is_quarantined, read_orphan
from weft.kinds.parts.in_place_update import find_fit
from weft.kinds.parts.workload import (
    WORKLOADS_BY_CONSTRAINT,
    WORKLOADS_BY_GANG,
    WORKLOADS_BY_IMAGE,
    WORKLOADS_BY_NETWORK,
    WORKLOADS_BY_UID,
    WORKLOADS_BY_VOLUME,
    WorkloadMarks,
    WorkloadStatus,
)
from weft.kinds.pool import PoolMarks, PoolSpec, PoolStatus
from weft.kinds.registry import WORKLOADS, is_workload
from weft.kinds.snapshot import SnapshotStatus
from weft.kinds.vm import VMS_BY_ORIGIN
from weft.objects.identity import named_key, object_key
from weft.scheduler.allocation.bind import has_migrated_from
from weft.scheduler.allocation.count import count_allocation, count_booting, count_disks, count_orphans
from weft.scheduler.allocation.lease import has_other_end
from weft.scheduler.allocation.preempt import may_preempt
from weft.scheduler.allocation.promise import find_trouble, is_at_risk
from weft.scheduler.allocation.replan import has_pause_to_come
from weft.scheduler.allocation.resize import clear_refused, find_growing
from weft.scheduler.constraint.affinity import depends_on
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.migration.plan import MigrationQueue
from weft.scheduler.node.facts import find_shut, read_bound, read_bounds, read_node
from weft.scheduler.own_policies.registry import OwnPolicies
from weft.scheduler.own_policies.status import prepare_policies
from weft.scheduler.questions import QUESTIONS, Questions
from weft.scheduler.queue.lanes import Queue
from weft.scheduler.queue.learned import Learned
from weft.scheduler.queue.shares import Shares
from weft.scheduler.queue.turn import find_turn, is_queued, is_suspended, mix, name_lease
from weft.scheduler.reservation.plan import Reservations
from weft.scheduler.workload.request import is_observed, read_memberships, wants_place

REFRESH_EVERY_SECONDS = 5.0
CHECK_SILENT_EVERY_SECONDS = 1.0  # whether all nodes have reported since a restore
LONGEST_SLEEP_SECONDS = 30.0  # the clock may be set meanwhile
MOST_LEASES = 200  # that wait for capacity and are tried again at once
RETRY_ADDRESSES_EVERY_SECONDS = 5.0
# Whose objects a new scheduler must read first.
_COUNTED = ("node", "allocation", "volume", "endpoint")
KINDS = (*_COUNTED, *WORKLOADS, "placementpolicy", "migration", "reservation", *QUESTIONS)
WATCHED = (*KINDS, "image", "network", "constraint", "project", "snapshot", "pool", DISRUPTION_BUDGET.name)


class Intake:
    """``wake`` rings whenever there is something to do: workloads in ``queue``, open ``questions``, or counts that are due."""

    def __init__(self, leadership: LeaderLease, engine: Engine, own: OwnPolicies) -> None:
        self.queue = Queue()
        self.questions = Questions()
        self.migrations = MigrationQueue()
        self.wake = Wake(leadership.clock)
        self.silent: list[str] = []  # nodes that haven't reported since a restore
        self.cramped: set[str] = set()  # keys of workloads that wait for capacity to grow where they run
        self.reservations = Reservations()
        self._reserved: dict[str, set[str]] = {}  # keys of workloads that wait for a reservation, by its key
        self.leases: set[str] = (
            set()
        )  # keys of workloads that wait for capacity over time, but not in the queue of leases
        self.pass_due = False  # of the queue of leases
        self._gained = False  # since the last pass something has changed that may let one start
        self.unruled: set[str] = set()  # keys of workloads that wait for a placement policy
        self.addresses = AddressBook()
        self.unaddressed: set[str] = set()  # keys of workloads that wait for an address
        self._leadership = leadership
        self._clock = leadership.clock
        self._view: View = leadership.cache.view
        self._engine = engine
        self._snapshot = engine.snapshot
        self._own = own
        self.learned = Learned(engine.leases)
        self._arrived: dict[str, None] = {}  # keys of workloads that are to enter that queue
        self._suspects: dict[str, Item] = {}  # nodes that may be silent
        self._due: dict[str, Item] = {}  # workloads that the changes in hand concern
        self._counts_due = True  # of nodes that meet each Constraint
        self._budgets_changed = False  # more may go down than before, by the changes in hand
        self._nodes_changed = False  # since verdicts were last refreshed
        self._refresh_at = 0.0
        self._addresses_freed = False  # since the workloads that wait for one were queued
        self._retry_addresses_at = 0.0

    def notice(self, changes: Sequence[Changed]) -> None:
        """Bring the snapshot up to date, and queue the workloads that these changes may let be placed."""
        for change in changes:
            match change.kind:
                case "allocation":
                    self._notice_allocation(change)
                case "node":
                    self._notice_node(change)
                case "endpoint":
                    self.addresses.notice_endpoint(change)
                    if change.new is None:
                        self._free_addresses()
                case "network":
                    if has_changed(change, which_joins):
                        self._offer_all(self._view.find(WORKLOADS_BY_NETWORK, change.key))
                case "image":
                    if has_changed(change, lambda item: (item.status(ImageStatus).phase, item.envelope.generation)):
                        self._offer_all(self._view.find(WORKLOADS_BY_IMAGE, change.key))
                case "constraint":
                    if has_changed(change, lambda item: (item.uid, item.envelope.generation, item.deleting)):
                        self._offer_all(self._view.find(WORKLOADS_BY_CONSTRAINT, change.key))
                        self._counts_due = True
                        self.wake.ring()
                case "project" | "placementpolicy":
                    if change.kind == "placementpolicy" and change.new is not None:
                        prepare_policies(change.new, self._own)
                        self.wake.ring()
                    self.unruled = self.offer_keys(self.unruled)
                case DISRUPTION_BUDGET.name:
                    if has_changed(change, lambda item: (item.uid, item.envelope.generation, item.deleting)):
                        self._budgets_changed = True
                case "snapshot":
                    if has_changed(change, _readiness_of):
                        self._offer_all(self._view.find(VMS_BY_ORIGIN, change.key))
                case "volume":
                    count_disks(self._snapshot, change)
                    self._offer_all(self._view.find(WORKLOADS_BY_VOLUME, change.key))
                case "pool":
                    self._notice_pool(change)
                case "migration":
                    self.migrations.notice(self._view, change)
                    self.wake.ring()
                case "reservation":
                    self._wake_reserved(self.reservations.notice(change))
                case "recommendation" | "report":
                    self.questions.notice(change)
                    self.wake.ring()
                case kind if is_workload(kind):
                    self._notice_workload(change)
        due, self._due = self._due, {}
        self._offer_all(due.values())
        if self._budgets_changed:
            self._budgets_changed = False
            self._offer_preempting()
        self.wake_classes()

    def _free_addresses(self) -> None:
        if self.unaddressed:
            self._addresses_freed = True
            self.wake.ring()

    def _notice_workload(self, change: Changed) -> None:
        workload = change.new
        if workload is None or workload.deleting:
            self._forget(change.item)
            self._offer_gang(change.item)
        elif has_changed(change, _spec_state):
            self._due[workload.key] = workload
            self._offer_gang(workload)
        if change.old is not None and has_changed(change, lambda item: item.status(WorkloadStatus).conversion):
            record = record_of(change.old)
            for name in record.volumes(spec_of(change.old)):
                volume = object_key("volume", change.old.envelope.project, name)
                self._offer_all(self._view.find(WORKLOADS_BY_VOLUME, volume))

    def _offer_gang(self, workload: Item) -> None:
        """Queue the other members of its gang: their places or conditions may change."""
        if spec_of(workload).gang is not None:
            self._offer_all(self._view.find(WORKLOADS_BY_GANG, gang_of(workload)))

    def _notice_allocation(self, change: Changed) -> None:
        self.count(change.key, change.new)
        if change.new is not None:
            self._engine.leads.note(change.new.spec(AllocationSpec), change.new.report(AllocationReport))
        if self.learned.notice(change, self._clock.now(), self._clock.elapsed()):
            self.wake.ring()
        self.migrations.notice(self._view, change)
        self._notice_slot(change)
        if self._view.of_kind(DISRUPTION_BUDGET.name) and has_changed(change, is_running):
            self._budgets_changed = True
        if has_changed(change, _change_relevant_state):
            for workload in self._view.find(WORKLOADS_BY_UID, change.item.spec(AllocationSpec).workload.uid):
                self._due[workload.key] = workload
                self._offer_gang(workload)

    def _notice_slot(self, change: Changed) -> None:
        """A slot that comes or goes changes what those in it take of their node."""
        spec = change.item.spec(AllocationSpec)
        if is_slot(spec):
            if change.old is None or change.new is None:
                for item in self._view.find(ALLOCATIONS_BY_SLOT, change.item.envelope.name):
                    self.count(item.key, item)
            elif has_changed(change, lambda item: item.spec(AllocationSpec).lease):  # what is in it lasts as long
                for item in self._view.find(ALLOCATIONS_BY_SLOT, change.item.envelope.name):
                    workloads = self._view.find(WORKLOADS_BY_UID, item.spec(AllocationSpec).workload.uid)
                    self._due.update((workload.key, workload) for workload in workloads)
            self._wake_reserved(self.reservations.notice_allocation(change, spec.workload.uid))
        elif spec.slot is not None:
            slot = self._snapshot.slots.get(slot_key(spec))
            self._wake_reserved(self.reservations.notice_allocation(change, slot.reservation) if slot else "")

    def wait_for_reservation(self, workload: Item) -> None:
        """Queue a workload again once its reservation has something free."""
        key = named_key("reservation", workload.envelope.project, spec_of(workload).reservation or "")
        self._reserved.setdefault(key, set()).add(workload.key)

    def _wake_reserved(self, reservation: str) -> None:
        if reservation:
            self.offer_keys(self._reserved.pop(reservation, set()))
        self.wake.ring()

    def count(self, key: str, allocation: Item | None) -> None:
        """Count in the snapshot what an allocation takes; None: it is gone."""
        count_allocation(self._snapshot, key, allocation, self._clock.now())
        self._snapshot.projects.note(key)

    def take(self, most: int) -> list[str]:
        """The next workloads to decide on."""
        return self.queue.take(most, lambda: Shares(self._view, self._snapshot))

    def refresh_silent(self) -> list[str]:
        """The nodes that haven't reported since a restore: placement waits for them."""
        self.silent = self._find_silent()
        return self.silent

    def take_counts_due(self) -> bool:
        """Whether the status of Constraints is due: True once after each reason."""
        due, self._counts_due = self._counts_due, False
        return due

    def refresh(self) -> float | None:
        """Wake sleeping classes if nodes have changed since their verdicts, at most every few seconds. Returns in how many
        seconds to call again, None if there is no need."""
        self._notice_reported()
        patience = CHECK_SILENT_EVERY_SECONDS if self.silent else None
        now, ends = self._clock.now(), self._snapshot.leases.find_next_end()
        if ends <= now:
            for key in self._snapshot.leases.take_over(now):
                if (item := self._view.get(key)) is not None:
                    self.count(key, item)
            self._offer_waiting()
            ends = self._snapshot.leases.find_next_end()
        if ends < math.inf:
            patience = min(max(0.0, ends - now), LONGEST_SLEEP_SECONDS if patience is None else patience)
        if self._addresses_freed:
            wait = self._retry_addresses_at - self._clock.elapsed()
            if wait <= 0:
                self._addresses_freed = False
                self._retry_addresses_at = self._clock.elapsed() + RETRY_ADDRESSES_EVERY_SECONDS
                self.unaddressed = self.offer_keys(self.unaddressed)
            else:
                patience = wait if patience is None else min(patience, wait)
        if not self._nodes_changed:
            return patience
        wait = self._refresh_at - self._clock.elapsed()
        if wait > 0:
            return wait if patience is None else min(wait, patience)
        self._nodes_changed = False
        self._counts_due = True
        self._refresh_at = self._clock.elapsed() + REFRESH_EVERY_SECONDS
        for request in self.queue.asleep():
            self._wake_class(request)
        if self.queue.ready or self._view.of_kind("constraint"):
            self.wake.ring()
        return patience

    def _wake_class(self, request: Request) -> None:
        self.queue.wake(request, self._clock.now() - PATIENCE_SECONDS)

    def _offer_leases(self) -> None:
        """Queue those that wait for capacity over time, the first ones first: what has become free may be enough. Of those in the
        queue of leases a pass says who starts."""
        self._want_pass()
        self._offer_waiting()

    def _offer_waiting(self) -> None:
        now = self._clock.now()
        found = [workload for key in self.leases if (workload := self._view.get(key)) is not None]
        turns = [(find_turn(self._view, item, now), item.key) for item in found]
        first = set(mix(turns, MOST_LEASES))
        self.leases = {item.key for item in found} - first
        self.offer_keys(first)

    def _offer_preempting(self) -> None:
        """Queue those that wait for capacity and may preempt others: budgets may let some go."""
        self._offer_leases()
        for request in self.queue.asleep():
            if may_preempt(request):
                self._wake_class(request)
        self.wake.ring()

    def enter(self, keys: Iterable[str]) -> None:
        """Have these workloads enter the queue of leases."""
        self._arrived.update(dict.fromkeys(keys))
        self.pass_due = self._gained = True
        self.wake.ring()

    def continue_pass(self) -> None:
        """Have another pass, though nothing has changed."""
        self.pass_due = True
        self.wake.ring()

    def begin_pass(self, most: int) -> tuple[list[str], bool]:
        """The keys of the workloads that enter the queue of leases before a pass, and whether anything has changed since the last
        one; another pass is due for the others."""
        keys = list(islice(self._arrived, most))
        for key in keys:
            del self._arrived[key]
        gained, self._gained = self._gained, bool(self._arrived)
        self.pass_due = bool(self._arrived)
        return keys, gained

    def offer_to_lanes(self, keys: Iterable[str]) -> None:
        """Queue these workloads for a decision, in their turn."""
        now = self._clock.now()
        for key in keys:
            if (workload := self._view.get(key)) is not None and not workload.deleting:
                self.queue.offer(key, find_turn(self._view, workload, now))

    def _forget(self, workload: Item) -> None:
        """It wants no place."""
        self.queue.forget(workload.key)
        self._arrived.pop(workload.key, None)
        if name_lease(workload) in self._engine.leases:
            self._engine.leases.drop(name_lease(workload))
            self._want_pass()

    def _want_pass(self) -> None:
        if len(self._engine.leases) or self._engine.leases.kept:
            self.pass_due = self._gained = True
            self.wake.ring()

    def offer_keys(self, keys: set[str]) -> set[str]:
        """Queue the workloads of ``keys``; returns an empty set to replace it."""
        if keys:
            self._offer_all(workload for key in sorted(keys) if (workload := self._view.get(key)) is not None)
            self.wake.ring()
        return set()

    def _notice_reported(self) -> None:
        """Queue all workloads again once all nodes have reported."""
        if self.silent and not self._find_silent():
            self.silent = []
            self._offer_all(list_workloads(self._view))
            if self.queue.ready:
                self.wake.ring()

    def _find_silent(self) -> list[str]:
        return find_silent(self._leadership.cache, self._suspects.values())

    def _notice_node(self, change: Changed) -> None:
        if change.new is not None and may_be_silent(self._leadership.cache, change.new):
            self._suspects[change.key] = change.new
        else:
            self._suspects.pop(change.key, None)
        if not has_changed(change, _placement_relevant_node_state):
            return self._notice_reported()
        if has_changed(change, _promises_of_node):
            self._offer_promises(change.item.uid)
            self._offer_lost(change.item.uid)
        if has_changed(change, read_node):
            self._nodes_changed = True
            self.wake.ring()
        if change.new is None:
            self._snapshot.drop_node(change.item.uid)
        else:
            if change.old is not None and change.old.uid != change.new.uid:
                self._snapshot.drop_node(change.old.uid)
            self._snapshot.put_node(read_node(change.new, find_shut(self._view, change.new)))
        self._bound_pools(change)
        count_disks(self._snapshot, change)
        if has_changed(change, lambda item: (item.uid, item.report(NodeReport).booting_memory)):
            count_booting(self._snapshot, change)
            self._nodes_changed = True
            self.wake.ring()
        if has_changed(change, lambda item: (item.uid, item.report(NodeReport).orphan_allocations)):
            count_orphans(self._snapshot, self._view, change)
            self.addresses.notice_node(change)
            self._free_addresses()
        if has_changed(change, lambda item: item.report(NodeReport).orphans):
            for item in (change.old, change.new):
                for text in item.report(NodeReport).orphans if item is not None else ():
                    orphan = read_orphan(text)
                    workload = self._view.get(orphan.key) if orphan is not None else None
                    if workload is not None:
                        self._offer(workload)
        self._notice_reported()

    def _notice_pool(self, change: Changed) -> None:
        """One that was closed, or has become full, takes no new disks; one may promise more or less than before."""
        if not has_changed(change, lambda item: (item.spec(PoolSpec), _size_of_pool(item))):
            return
        marks = change.item.marks(PoolMarks)
        if change.new is not None and marks.pool != LOCAL:
            self._snapshot.put_bound(marks.id, read_bound(change.new, 0))
        for node in self._view.find(NODES_BY_POOL, marks.id):
            self._snapshot.put_node(read_node(node, find_shut(self._view, node)))
            self._nodes_changed = True
        self.wake.ring()

    def _bound_pools(self, change: Changed) -> None:
        """Set what the storages that a node offers may promise."""
        for item in (change.old, change.new):
            for storage, bound in read_bounds(self._view, item).items() if item is not None else ():
                if item is change.new or self._view.find(NODES_BY_POOL, storage):
                    self._snapshot.put_bound(storage, bound)
                else:
                    self._snapshot.pools.drop_bound(storage)

    def _offer_promises(self, node_uid: str) -> None:
        """Queue what has a lease on a node, and the reservations with slots there: they may have to begin elsewhere."""
        for item in self._view.find(ALLOCATIONS_BY_NODE, node_uid):
            spec = item.spec(AllocationSpec)
            if is_slot(spec):
                self.reservations.retry_by_uid(spec.workload.uid)
            elif spec.lease is not None and spec.lease.end is not None:
                self._due.update((w.key, w) for w in self._view.find(WORKLOADS_BY_UID, spec.workload.uid))
        self.wake.ring()

    def _offer_lost(self, node_uid: str) -> None:
        """Queue what was lost with a node: it waits for that one's word only while it is back."""
        uids = {
            spec.workload.uid
            for item in self._view.find(ALLOCATIONS_BY_NODE, node_uid)
            if is_lost(spec := item.spec(AllocationSpec))
        }
        self._offer_all(workload for uid in sorted(uids) for workload in self._view.find(WORKLOADS_BY_UID, uid))

    def _offer(self, workload: Item) -> None:
        """Queue a workload if its place or its conditions may change."""
        placed, spec = workload.envelope.condition("Placed"), spec_of(workload)
        is_placed = placed is not None and placed.status == "True"
        allocations = self._view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)
        now = self._clock.now()
        to_do = is_at_risk(workload) or any(
            not is_placed
            or find_trouble(self._view, item, now)
            or is_suspended(item)
            or needs_resize(self._view, item, workload)
            or clear_refused(self._view, workload, item, now) is not None
            or is_regrouped(item, workload)
            or has_other_end(self._view, item, spec)
            or has_pause_to_come(item.spec(AllocationSpec).lease, now)
            for item in allocations
        )
        if to_do or has_migrated_from(workload, allocations):
            self.queue.offer(workload.key, find_turn(self._view, workload, now))
        elif not wants_place(self._view, workload):
            self._forget(workload)
        elif is_queued(spec):
            self.enter([workload.key])
        else:
            self.queue.offer(workload.key, find_turn(self._view, workload, now))

    def _offer_all(self, workloads: Iterable[Item]) -> None:
        for workload in workloads:
            self._offer(workload)

    def wake_classes(self, *, leases: bool = True) -> None:
        """Wake the classes, and with ``leases`` those too, that wait for what nodes have gained since the last call."""
        snapshot = self._snapshot
        if snapshot.improved:
            uids = [uid for uid in snapshot.improved if snapshot.index_of(uid) is not None]
            eased = len(uids) < len(snapshot.improved)  # storages among them
            snapshot.improved.clear()
            cramped, self.cramped = self.cramped, set()
            self._offer_all(workload for key in sorted(cramped) if (workload := self._view.get(key)) is not None)
            if leases:
                self._offer_leases()
            rows = [row for uid in uids if (row := snapshot.index_of(uid)) is not None]
            if rows:
                most = np.max(snapshot.capacity[:, rows] - snapshot.allocated[:, rows], axis=1)
                cpu, memory, disk = (int(amount) for amount in most)
                for request in self.queue.asleep():
                    wanted = request.amounts
                    if wanted[0] <= cpu and wanted[1] <= memory and wanted[2] <= disk:
                        if self._engine.may_fit(request, uids):
                            self._wake_class(request)
                    if may_preempt(request) and any(self._view.count(PREEMPTIBLE, uid) for uid in uids):
                        self._wake_class(request)
            if eased:
                for request in self.queue.asleep():
                    if request.asks:
                        self._wake_class(request)
        groups = snapshot.groups.take_changed()
        if groups:
            for request in self.queue.asleep():
                if depends_on(request, groups):
                    self._wake_class(request)
        if self.queue.ready:
            self.wake.ring()


def needs_resize(view: View, allocation: Item, workload: Item) -> bool:
    """Whether the allocation has other amounts than its workload, or a volume of it, requests by now."""
    spec = allocation.spec(AllocationSpec)
    return spec.migration is None and bool(
        find_fit(spec, spec_of(workload), allocation.report(AllocationReport), count_starts(workload))
        or find_growing(view, spec.volumes)
    )


def _change_relevant_state(allocation: Item) -> object:
    """The parts of an allocation that decide which changes are possible."""
    spec = allocation.spec(AllocationSpec)
    report, lease = allocation.report(AllocationReport), spec.lease
    return report.resize_limits, spec.migration, is_lost(spec), lease and (lease.suspension, lease.pauses, report.state)


def is_regrouped(allocation: Item, workload: Item) -> bool:
    """Whether its workload has other groups by now."""
    spec = allocation.spec(AllocationSpec)
    return spec.migration is None and spec.memberships != read_memberships(workload)


def _placement_relevant_node_state(node: Item) -> object:
    """All that this module reads of a node; not its sums, which change with each placement."""
    of, status = node.envelope, node.status(NodeStatus)
    state = status.phase, is_quarantined(status) and status.quarantine, status.newer_than
    asked = node.actions(NodeActions)
    return (node.uid, bytes(of.spec), asked, bytes(of.report), of.labels, state, node.deleting)


def _size_of_pool(pool: Item) -> object:
    status = pool.status(PoolStatus)
    return status.phase, status.capacity


def _promises_of_node(node: Item) -> object:
    """All that decides whether leases begin on a node."""
    asked, status = node.actions(NodeActions), node.status(NodeStatus)
    people = asked.cordoned, asked.drain, asked.maintenance
    return (
        status.phase,
        node.report(NodeReport).contact,
        people,
        is_quarantined(status) and status.quarantine,
        status.newer_than,
    )


def _spec_state(workload: Item) -> object:
    """The parts of a workload that concern its placement."""
    addressed = workload.envelope.condition("Addressed")
    return (
        workload.uid,
        workload.envelope.generation,
        workload.marks(WorkloadMarks),
        addressed and (addressed.status, addressed.generation),
        is_observed(workload),
    )


def _readiness_of(snapshot: Item) -> object:
    """The part of a snapshot that a VM that begins from it waits for."""
    status = snapshot.status(SnapshotStatus)
    return snapshot.uid, snapshot.deleting, status.phase, status.serves
