"""Copies a workload's spec into its allocation, and its node's report into its status; removes a deleted workload; adopts guests.

Reads workloads, allocations, nodes, endpoints, published ports, decisions; writes workload.status and Ready, the spec in
allocations, and removes a deleted workload with all that belongs to it. Woken by any of those. It ends nothing by itself: it
passes specs on, and removes an allocation only after its node has reported that everything of it is gone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.contracts.store import MAX_WRITES, Precondition, Write
from weft.contracts.trace.context import end_mark, pass_on
from weft.controllers.allocation.active import find_active
from weft.controllers.loop import Plan
from weft.controllers.loss.outlook import describe_outlook
from weft.controllers.workload.adoption import plan_adoption
from weft.controllers.workload.departed import plan_departed
from weft.controllers.workload.stale_allocation import is_astray, plan_astray
from weft.controllers.workload.status import (
    AllocationFacts,
    DesiredWorkload,
    active_place,
    fold_current,
    fold_healthy,
    fold_lease,
    fold_ready,
    fold_set_up,
    fold_status,
    has_been_resized,
)
from weft.informer.commit import Commit, delete, edit, put, unchanged
from weft.informer.trace.commits import is_reached
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import count_starts, pass_on_starts, record_of, spec_of
from weft.kinds.allocation import (
    ALLOCATIONS_BY_NODE,
    ALLOCATIONS_BY_WAITED,
    ALLOCATIONS_BY_WORKLOAD,
    AllocationReport,
    AllocationSpec,
    has_given_way,
    has_left_cluster,
    is_at_rest,
    is_lease_over,
    is_restoring,
    list_snapshots_to_take,
    set_desired,
    set_loss_guard,
)
from weft.kinds.conversion import CONVERSIONS_BY_WORKLOAD, ConversionStatus, workload_keys
from weft.kinds.conversion import is_under_way as is_converting
from weft.kinds.endpoint import ENDPOINTS_BY_WORKLOAD, EndpointSpec
from weft.kinds.fields.lease import WARN_SECONDS, AllocatedLease, LeaseRequest
from weft.kinds.migration import MIGRATIONS_BY_WORKLOAD, MigrationSpec, MigrationStatus, is_under_way, workload_key
from weft.kinds.node import NODES_BY_ORPHAN, NODES_BY_UID, NodeReport, NodeSpec, NodeStatus, read_orphan
from weft.kinds.parts.in_place_update import find_fit, wants_fresh_start
from weft.kinds.parts.nic import networks_of
from weft.kinds.parts.workload import WORKLOADS_BY_UID, WorkloadMarks, WorkloadStatus
from weft.kinds.published_port import PUBLISHED_PORTS_BY_WORKLOAD, PublishedPortSpec
from weft.kinds.registry import WORKLOADS, is_workload
from weft.kinds.replication import REPLICATION, ReplicationSpec, ReplicationStatus, subject_of
from weft.objects.envelope import Envelope, merge_part, set_condition
from weft.objects.identity import object_key
from weft.objects.lifecycle import Phase
from weft.objects.quantity import format_duration, format_time

SOURCE = "workload"
CHECK_EVERY_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 86400.0


class Workloads:
    """``find_silent`` names the nodes that have not reported since a restore."""

    name = "workload"
    kinds = (*WORKLOADS, "allocation", "node", "endpoint", "publishedport", "migration", "conversion", "replication")

    def __init__(self, find_silent: Callable[[], list[str]]) -> None:
        self._find_silent = find_silent

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "allocation":
                keys = _workloads(view, change.item.spec(AllocationSpec).workload.uid)
                yields = change.new is None or change.new.spec(AllocationSpec).lease is not None
                waiting = view.find(ALLOCATIONS_BY_WAITED, change.item.envelope.name) if yields else ()
                for item in waiting:
                    keys += _workloads(view, item.spec(AllocationSpec).workload.uid)
                return keys
            case "endpoint":
                return _workloads(view, change.item.spec(EndpointSpec).workload.uid)
            case "publishedport":
                if change.new is None:
                    return _workloads(view, change.item.spec(PublishedPortSpec).workload.uid)
            case "migration":
                if has_changed(
                    change, lambda item: is_under_way(item.spec(MigrationSpec), item.status(MigrationStatus))
                ):
                    return (workload_key(change.item),)
            case "conversion":
                if has_changed(change, _conversion_state):
                    return workload_keys(change.item)
            case "replication":
                if has_changed(change, lambda item: item.status(ReplicationStatus).phase == "Stale"):
                    return (subject_of(change.item),)
            case "node":
                return _touched(view, change)
            case kind if is_workload(kind):
                return (change.key,)
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        workloads = [workload for key in keys if (workload := view.get(key)) is not None]
        waiting = {
            workload.key
            for workload in workloads
            if workload.deleting or view.count(NODES_BY_ORPHAN, workload.key) or _has_astray(view, workload)
        }
        silent = bool(waiting) and bool(self._find_silent())
        for workload in workloads:
            commit = plan_workload(view, workload, silent, now)
            if (wait := find_warning(workload, now)) < LONGEST_WAIT_SECONDS:
                plan.later[workload.key] = max(wait, 0.1)
            if commit is not None:
                plan.commits.append(commit)
            elif silent and workload.key in waiting:
                plan.later[workload.key] = CHECK_EVERY_SECONDS
        return plan


def plan_workload(view: View, workload: Item, silent: bool, now: float) -> Commit | None:
    """Plan one workload now, in one commit. ``silent``: some nodes have not reported since a restore, and may have its guest."""
    allocations = view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)
    if not allocations and view.count(NODES_BY_ORPHAN, workload.key):
        adoption = plan_adoption(view, workload, silent, now)
        if adoption is not None:
            return adoption
    if workload.deleting and not allocations and not silent:
        return plan_removal(view, workload)
    astray = plan_astray(view, workload, allocations, silent, now)
    astray = astray or plan_departed(view, workload, allocations, silent, now)
    if astray is not None:
        return astray
    changed = [
        (item, write) for item in allocations if (write := plan_allocation(view, workload, item, now)) is not None
    ]
    writes: list[Write] = [write for _, write in changed]
    write, events = plan_status(view, workload, allocations, now)
    if write is not None:
        writes.append(write)
    if not writes:
        return None
    # Together, so that the highest incarnation is in the status before the place that had it is gone.
    return Commit(workload.key, writes, [unchanged(workload), *(unchanged(item) for item, _ in changed)], events)


def find_warning(workload: Item, now: float) -> float:
    """Seconds until people are warned that its lease ends; infinite if it has no end, or they know."""
    lease = workload.status(WorkloadStatus).lease
    if lease is None or lease.end is None or lease.warned or lease.state not in ("Active", "Suspended"):
        return math.inf
    return lease.end - WARN_SECONDS - now


def _conversion_state(conversion: Item) -> object:
    """The parts of a Conversion that its workloads' status shows."""
    status = conversion.status(ConversionStatus)
    return conversion.uid, is_converting(status), status.old_uid, status.new_uid


def _has_astray(view: View, workload: Item) -> bool:
    """Whether its guest has migrated on, as its node says, by a migration that the store doesn't know of."""
    allocations = view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)
    return any(is_astray(item) or has_left_cluster(item.report(AllocationReport)) for item in allocations)


def plan_allocation(view: View, workload: Item, item: Item, now: float) -> Write | None:
    """Pass the workload's spec on to one of its allocations, or delete that once its node has released it."""
    spec = item.spec(AllocationSpec)
    if item.deleting:
        report = item.report(AllocationReport)
        released = report.state == "released" and report.incarnation >= spec.incarnation
        return delete(item) if released or not view.find(NODES_BY_UID, spec.node_uid) else None
    if spec.migration is not None:
        return None  # the migrations controller has it, and aborts the migration for a spec that can't wait
    envelope = edit(item)
    pass_on(workload.envelope, envelope)
    if workload.deleting:
        envelope.deleting_since = now
    else:
        workload_spec, report = spec_of(workload), item.report(AllocationReport)
        starts = count_starts(workload)
        if wants_fresh_start(spec, workload_spec, starts) and find_fit(spec, workload_spec, report, starts):
            return None  # the scheduler passes the spec on, with the new size
        # Its node may be between two files of a disk: nobody else gets that before it is done.
        rests = is_at_rest(spec, report) and not list_snapshots_to_take(spec, report) and not is_restoring(spec, report)
        new = follow_spec(view, workload, spec, rests=rests)
        if new == spec:
            return None
        envelope.spec = merge_part(envelope.spec, new)
        envelope.generation += 1
    return put(envelope)


def follow_spec(view: View, workload: Item, spec: AllocationSpec, *, rests: bool) -> AllocationSpec:
    """An allocation's spec with what people may change while it lives; one that ``rests``, stopped as desired, releases the
    volumes and networks that its workload doesn't name any more."""
    workload_spec = spec_of(workload)
    autonomy = max(
        [node.spec(NodeSpec).autonomy_seconds for node in view.find(NODES_BY_UID, spec.node_uid)], default=0.0
    )
    spec = set_loss_guard(spec, on=workload_spec.on_node_loss != "wait", after=autonomy)
    named, joined = record_of(workload).volumes(workload_spec), networks_of(workload_spec.networks)
    return msgspec.structs.replace(
        set_desired(pass_on_starts(spec, workload), workload_spec.run),
        workload_generation=workload.envelope.generation,
        restart=workload_spec.restart,
        grace_seconds=workload_spec.grace,
        waits_for=find_waited(view, spec),
        nics=[nic for nic in spec.nics if not rests or nic.network in joined],
        volumes=[volume for volume in spec.volumes if not rests or volume.name in named],
        lease=_follow_lease(spec.lease, workload_spec.lease),
    )


def _follow_lease(held: AllocatedLease | None, asked: LeaseRequest | None) -> AllocatedLease | None:
    """A lease ends early because people cancelled it; only the scheduler knows whether it may last longer."""
    if held is None or asked is None:
        return held
    return msgspec.structs.replace(
        held,
        cancelled=held.cancelled or asked.cancelled,
        preemptible=bool(asked.preemptible),
        priority=asked.priority,
    )


def find_waited(view: View, spec: AllocationSpec) -> str | None:
    """The first thing that an allocation waits for which still has its capacity."""
    names = spec.waits_for.split(",") if spec.waits_for else []
    return ",".join(name for name in names if _has_capacity(view.get(object_key("allocation", None, name)))) or None


def _has_capacity(item: Item | None) -> bool:
    if item is None:
        return False
    spec, report = item.spec(AllocationSpec), item.report(AllocationReport)
    return not (has_given_way(spec, report) or is_lease_over(spec, report))


def plan_status(
    view: View, workload: Item, allocations: Sequence[Item], now: float
) -> tuple[Write | None, list[Event]]:
    """The workload with the status and the condition Ready that it should have, None if it has them."""
    if not allocations and not workload.deleting and _is_on_its_way(view, workload, workload.status(WorkloadStatus)):
        return None, []
    envelope = edit(workload)
    events = render_status(view, workload, envelope, allocations, now)
    return (None, []) if events is None else (put(envelope), events)


def set_placed_status(view: View, workload: Item, envelope: Envelope, allocation: Item, now: float) -> list[Event]:
    """Give ``envelope``, a workload that is written together with its allocation, the status that follows."""
    return render_status(view, workload, envelope, [allocation], now) or []


def render_status(
    view: View, workload: Item, envelope: Envelope, allocations: Sequence[Item], now: float
) -> list[Event] | None:
    """Give ``envelope``, a copy of the workload's, the status and conditions that follow from its conditions and
    ``allocations``. Returns events for the journal; None if nothing changes."""
    former = workload.status(WorkloadStatus)
    desired, places = read_desired(view, workload, envelope), [_read_place(view, a) for a in allocations]
    status = fold_status(desired, places, read_addresses(view, workload, find_active(allocations)), former)
    status.lease = fold_lease(desired, active_place(places), former.lease, now)
    changed = set_condition(envelope, fold_ready(status, envelope.generation, now))
    if desired.departed and not places and desired.placed is not None:  # its place went with it
        envelope.conditions = [one for one in envelope.conditions if one != desired.placed]
        changed = True
    current, place = fold_current(desired, places, now), active_place(places)
    if current is not None and (desired.current is not None or (current.status, current.reason) != ("True", "Current")):
        changed = set_condition(envelope, current) or changed
    report = place.report if place is not None else AllocationReport()
    if report.health or envelope.condition("Healthy") is not None:
        changed = set_condition(envelope, fold_healthy(status, report, envelope.generation, now)) or changed
    if report.set_up or envelope.condition("SetUp") is not None:
        changed = set_condition(envelope, fold_set_up(status, report, envelope.condition("SetUp"), now)) or changed
    if not changed and status == former:
        return None
    if is_reached(envelope) and envelope.deleting_since is None:
        end_mark(envelope)
    envelope.status = merge_part(envelope.status, status)
    told = _announce_end(status, former, envelope, spec_of(workload).reservation)
    told += _announce_late(status, former, envelope)
    if has_been_resized(desired.current, current, place):
        told.append(Event("Normal", "Resized", f"on {status.node}, which is back", envelope.ref, SOURCE))
    if status.phase == former.phase:
        return told
    where = f" on {status.node}" if status.node else ""
    why = f": {status.message or status.reason}" if status.message or status.reason else ""
    kind: Literal["Normal", "Warning"] = "Warning" if status.phase in (Phase.FAILED, Phase.UNKNOWN) else "Normal"
    return [*told, Event(kind, str(status.phase), f"{status.phase}{where}{why}", envelope.ref, SOURCE)]


def _announce_late(status: WorkloadStatus, former: WorkloadStatus, envelope: Envelope) -> list[Event]:
    lease = status.lease
    if lease is None or lease.start is None or not lease.late_seconds:
        return []
    if former.lease is not None and former.lease.late_seconds and former.lease.start == lease.start:
        return []
    late = format_duration(round(lease.late_seconds))
    text = f"its lease was promised for {format_time(lease.start)} and began {late} late"
    return [Event("Warning", "LeaseLate", text, envelope.ref, SOURCE)]


def _announce_end(
    status: WorkloadStatus, former: WorkloadStatus, envelope: Envelope, reservation: str | None
) -> list[Event]:
    lease, what = status.lease, f"{envelope.kind}/{envelope.name}"
    if lease is None or lease.end is None or not lease.warned or (former.lease is not None and former.lease.warned):
        return []
    then = f"reservation/{reservation} ends then" if reservation is not None else f"weft lease extend {what} --by 1h"
    text = f"its lease ends at {format_time(lease.end)}: {then}"
    return [Event("Warning", "LeaseEnding", text, envelope.ref, SOURCE)]


def _is_on_its_way(view: View, workload: Item, former: WorkloadStatus) -> bool:
    """Whether a new workload is just getting addresses and a place: a write would only conflict with those."""
    spec, addressed = spec_of(workload), workload.envelope.condition("Addressed")
    return (
        former.observed_generation == 0
        and spec.run == "run"
        and not spec.hold
        and workload.envelope.condition("Placed") is None
        and (addressed is None or addressed.status == "True")
        and not view.count(NODES_BY_ORPHAN, workload.key)  # it waits: an orphan may be its guest
    )


def plan_removal(view: View, workload: Item) -> Commit:
    """Remove a workload that has no allocation any more, with all that belongs to it; in several commits if that is much."""
    belongings = [
        *view.find(ENDPOINTS_BY_WORKLOAD, workload.uid),
        *view.find(PUBLISHED_PORTS_BY_WORKLOAD, workload.uid),
    ]
    decision = view.get(
        object_key("decision", workload.envelope.project, f"{workload.envelope.kind}.{workload.envelope.name}")
    )
    if decision is not None and decision.envelope.owner == workload.envelope.ref:
        belongings.append(decision)
    writes: list[Write] = [delete(item) for item in belongings[: MAX_WRITES - 1]]
    preconditions: list[Precondition] = [unchanged(workload)]
    others = [name for name in workload.envelope.finalizers if name != "workload"]
    if len(belongings) >= MAX_WRITES:
        return Commit(workload.key, writes, preconditions)
    if others:
        envelope = edit(workload)
        envelope.finalizers = others
        return Commit(workload.key, [*writes, put(envelope)], preconditions)
    node = view.get(object_key("node", None, workload.status(WorkloadStatus).node or ""))
    last = node.uid if node is not None else ""
    event = Event("Normal", "Deleted", f"{workload.envelope.name} was deleted", workload.envelope.ref, SOURCE, last)
    return Commit(workload.key, [*writes, delete(workload)], preconditions, [event])


def read_desired(view: View, workload: Item, envelope: Envelope) -> DesiredWorkload:
    return DesiredWorkload(
        spec_of(workload),
        envelope.generation,
        workload.deleting,
        envelope.condition("Placed"),
        envelope.condition("Addressed"),
        _find_migration(view, workload),
        record_of(workload).runs_once(spec_of(workload)),
        *_find_conversion(view, workload),
        arrives=workload.marks(WorkloadMarks).arrives,
        departed=workload.marks(WorkloadMarks).departed,
        fenced=_describe_fence(view, workload),
        current=envelope.condition("Current"),
        starts=count_starts(workload),
    )


def _describe_fence(view: View, workload: Item) -> str:
    """Describe where the workload runs, or may run, that was left to another cluster."""
    name = workload.marks(WorkloadMarks).fenced
    left = view.get(object_key(REPLICATION.name, workload.envelope.project, name)) if name else None
    if left is None:
        return f"it was left to another cluster by replication/{name}" if name else ""
    cluster = left.spec(ReplicationSpec).cluster
    if left.status(ReplicationStatus).phase == "Stale":
        return f"runs at {cluster}"
    return f"it was left to {cluster} by replication/{name}"


def _find_conversion(view: View, workload: Item) -> tuple[str, str]:
    """The Conversion of the workload under way, and, if it is the old one, what it becomes; empty if none."""
    for item in view.find(CONVERSIONS_BY_WORKLOAD, workload.key):
        status = item.status(ConversionStatus)
        if is_converting(status) and workload.uid in (status.old_uid, status.new_uid):
            return item.envelope.name, status.new if workload.uid == status.old_uid else ""
    return "", ""


def _find_migration(view: View, workload: Item) -> str:
    """The name of its Migration that is under way, empty if there is none."""
    under_way = [
        item
        for item in view.find(MIGRATIONS_BY_WORKLOAD, workload.key)
        if is_under_way(item.spec(MigrationSpec), item.status(MigrationStatus))
    ]
    first = min(under_way, key=lambda item: (item.envelope.created_at, item.key), default=None)
    return first.envelope.name if first is not None else ""


def read_addresses(view: View, workload: Item, allocation: Item | None) -> dict[str, str]:
    """Network → address, in the order of the NICs; an address that the guest uses wins over its endpoint's. A new allocation has
    its addresses before their endpoints are in the view."""
    wanted = networks_of(spec_of(workload).networks)
    nics = allocation.spec(AllocationSpec).nics if allocation is not None else []
    used = {nic.network: nic.address for nic in nics}
    specs = [item.spec(EndpointSpec) for item in view.find(ENDPOINTS_BY_WORKLOAD, workload.uid)]
    found = {**{spec.network: spec.address for spec in specs}, **used}
    place = {name: index for index, name in enumerate(wanted)}
    return {name: found[name] for name in sorted(found, key=lambda name: place.get(name, len(place)))}


def _read_place(view: View, item: Item) -> AllocationFacts:
    spec = item.spec(AllocationSpec)
    nodes = view.find(NODES_BY_UID, spec.node_uid)
    phase = nodes[0].status(NodeStatus).phase if nodes else None
    outlook = describe_outlook(view, nodes[0], item) if phase == "NotReady" else ""
    return AllocationFacts(spec, item.report(AllocationReport), phase, item.envelope.generation, item.deleting, outlook)


def _workloads(view: View, uid: str) -> list[str]:
    return [item.key for item in view.find(WORKLOADS_BY_UID, uid)]


def _state_of_node(node: Item) -> object:
    reason = (found := node.envelope.condition("GuestsGoOn")) and found.reason
    return node.uid, node.status(NodeStatus).phase, reason, node.spec(NodeSpec).autonomy_seconds


def _touched(view: View, change: Changed) -> list[str]:
    """The workloads that a node's change concerns."""
    keys: list[str] = []
    if has_changed(change, _state_of_node):
        for allocation in view.find(ALLOCATIONS_BY_NODE, change.item.uid):
            keys += _workloads(view, allocation.spec(AllocationSpec).workload.uid)
    if has_changed(change, lambda item: (item.report(NodeReport).orphans, item.report(NodeReport).orphan_allocations)):
        for item in (change.old, change.new):
            orphans = item.report(NodeReport).orphans if item is not None else []
            keys += [orphan.key for text in orphans if (orphan := read_orphan(text)) is not None]
    return keys
