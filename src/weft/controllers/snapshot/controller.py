"""Has snapshots taken by the nodes of their workloads, records where they lie, and releases a deleted one once its data is gone.

Reads snapshots, workloads, allocations, nodes, quotas; writes snapshot.status and the orders in allocations; releases the finalizer
"snapshot"; deletes a clone's snapshot once its twin has begun. Woken by any of those. The node removes the data: the API server's
answer to its reports names deleted snapshots, and its reports list those that it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.snapshot.facts import SnapshotFacts, is_on_the_way, list_disks, read_facts
from weft.controllers.snapshot.fetch import is_fetched, plan_fetch
from weft.controllers.snapshot.group import plan_group
from weft.controllers.snapshot.lineage import find_parent, list_children
from weft.controllers.snapshot.plan import NODE_SILENT, SnapshotPlan, plan_snapshot
from weft.controllers.snapshot.volumes import is_taken_of_volumes, plan_of_volumes
from weft.informer.commit import Commit, Draft, let_go, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import record_of, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationReport, AllocationSpec, has_begun
from weft.kinds.fields.allocated_snapshot import AllocatedSnapshot
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.parts.snapshot.verbs import name_member
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus, sizes_of
from weft.kinds.quota import quota_key
from weft.kinds.snapshot import (
    SNAPSHOTS_BY_NODE,
    SNAPSHOTS_BY_UID,
    SNAPSHOTS_BY_WORKLOAD,
    SNAPSHOTS_BY_WORKLOAD_UID,
    SnapshotMarks,
    SnapshotStatus,
    is_of_volumes,
    workload_key,
)
from weft.kinds.vm import VMS_BY_ORIGIN, origin_keys
from weft.kinds.volume import VOLUMES_BY_SOURCE, VolumeStatus, is_coming, read_origin
from weft.objects.identity import object_key

FINALIZER = "snapshot"
SOURCE = "snapshots"
CHECK_EVERY_SECONDS = 1.0


class Snapshots:
    """``find_silent`` names the nodes that have not reported since a restore of the store."""

    name = "snapshots"
    kinds = ("snapshot", "vm", "volume", "container", "allocation", "node", "quota")

    def __init__(self, find_silent: Callable[[], list[str]]) -> None:
        self._find_silent = find_silent

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "snapshot":
                return _route_snapshot(view, change)
            case "vm":
                if has_changed(change, lambda item: (item.uid, item.deleting, origin_keys(item))):
                    return _of_workload(view, *(item for item in (change.old, change.new) if item is not None))
            case "volume":
                if has_changed(change, _snapshot_relevant_volume_state):
                    return _of_volume(view, change)
            case "container":
                if has_changed(change, lambda item: (item.uid, item.deleting)):
                    return [item.key for item in view.find(SNAPSHOTS_BY_WORKLOAD, change.key)]
            case "allocation":
                of = change.item.spec(AllocationSpec).workload
                if of.kind in self.kinds and has_changed(change, _snapshot_relevant_state):
                    workload = view.get(object_key(of.kind, of.project, of.name))
                    if workload is not None:
                        return [*_of_workload(view, workload), *_of_volumes(view, change)]
                    return [item.key for item in view.find(SNAPSHOTS_BY_WORKLOAD_UID, of.uid)]
            case "node":
                return _route_node(view, change)
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        items = [item for key in keys if (item := view.get(key)) is not None]
        silent = bool(self._find_silent()) if any(_asks_nodes(item) for item in items) else False
        planned = set[str]()
        for item in items:
            members = find_members(view, item) if _is_open(item) else []
            if item.key in planned:
                continue
            planned.update(member.key for member in members)
            commit = plan_together(view, item, members, silent, now) if members else plan_one(view, item, silent, now)
            if commit is not None:
                plan.commits.append(commit)
            waits = (silent and _asks_nodes(item)) or (item.deleting and is_on_the_way(view, item))
            waits = waits or (is_fetched(item) and item.status(SnapshotStatus).order is None)  # for a node
            if members or (commit is None and waits):  # a group's turns end by time, too
                plan.later[item.key] = CHECK_EVERY_SECONDS
        return plan


def _asks_nodes(item: Item) -> bool:
    return item.deleting or item.status(SnapshotStatus).phase != "Failed"


def _route_snapshot(view: View, change: Changed) -> Iterable[str]:
    """Those that wait for it, too: one of a workload is taken at a time."""
    keys = [change.key]
    if has_changed(change, lambda item: (item.uid, item.status(SnapshotStatus).phase, _is_node_silent(item))):
        keys += [item.key for item in view.find(SNAPSHOTS_BY_WORKLOAD, workload_key(change.item))]
    if has_changed(change, lambda item: (item.uid, item.deleting, item.status(SnapshotStatus).phase)):
        keys += [item.key for item in find_members(view, change.item)]
    return keys


def _is_node_silent(snapshot: Item) -> bool:
    return snapshot.status(SnapshotStatus).reason == NODE_SILENT


def _route_node(view: View, change: Changed) -> Iterable[str]:
    items = [item for item in (change.old, change.new) if item is not None]
    keys: dict[str, None] = {}
    if has_changed(change, lambda item: (item.uid, item.report(NodeReport).snapshots)):
        uids = {one.uid for item in items for one in item.report(NodeReport).snapshots}
        keys |= {item.key: None for uid in sorted(uids) for item in view.find(SNAPSHOTS_BY_UID, uid)}
    if has_changed(change, lambda item: item.report(NodeReport).orders.volume):
        uids = {one.uid for item in items for one in item.report(NodeReport).orders.volume if one.act == "take"}
        keys |= {item.key: None for uid in sorted(uids) for item in view.find(SNAPSHOTS_BY_UID, uid)}
    if has_changed(change, lambda item: item.report(NodeReport).orders.backup):
        uids = {
            one.uid for item in items for one in item.report(NodeReport).orders.backup if one.act in ("fetch", "serve")
        }
        keys |= {item.key: None for uid in sorted(uids) for item in view.find(SNAPSHOTS_BY_UID, uid)}
    if has_changed(change, _home_of):
        homes = sorted({item.uid for item in items})
        keys |= {item.key: None for uid in homes for item in view.find(SNAPSHOTS_BY_NODE, uid)}
    return keys


def _home_of(node: Item) -> object:
    return node.uid, node.report(NodeReport).snapshots, node.status(NodeStatus).phase == "Ready"


def _of_workload(view: View, *states: Item) -> list[str]:
    """The snapshots of a workload, and those that it began from, or goes on from, in these states of it."""
    began = [(record_of(one).origin(spec_of(one)), one.marks(WorkloadMarks).continues) for one in states]
    names = {found.snapshot for pair in began for found in pair if found is not None}
    origins = [object_key("snapshot", states[0].envelope.project, name) for name in sorted(names)]
    own = (item.key for item in view.find(SNAPSHOTS_BY_WORKLOAD, states[0].key))
    return [*own, *(key for key in origins if view.get(key) is not None)]


def _of_volumes(view: View, change: Changed) -> Iterable[str]:
    """The snapshots of an allocation's volumes."""
    keys: dict[str, None] = {}
    for item in (change.old, change.new):
        if item is not None:
            spec = item.spec(AllocationSpec)
            named = [object_key("volume", spec.workload.project, volume.name) for volume in spec.volumes]
            keys |= {one.key: None for key in named for one in view.find(SNAPSHOTS_BY_WORKLOAD, key)}
    return keys


def _of_volume(view: View, change: Changed) -> Iterable[str]:
    """The snapshots of a volume, and those that its data came from."""
    items = [item for item in (change.old, change.new) if item is not None]
    named = [origin.snapshot for item in items if (origin := read_origin(item)) is not None]
    keys = [object_key("snapshot", change.item.envelope.project, name) for name in named]
    of = [item.key for item in view.find(SNAPSHOTS_BY_WORKLOAD, change.key)]
    return [*of, *(key for key in keys if view.get(key) is not None)]


def _snapshot_relevant_volume_state(volume: Item) -> object:
    """The parts of a volume that concern its snapshots."""
    status = volume.status(VolumeStatus)
    return volume.uid, volume.deleting, status.node_uid, status.attached_to, is_coming(volume, status)


def _is_open(item: Item) -> bool:
    """Whether what becomes of it may depend on its group."""
    return not item.deleting and item.status(SnapshotStatus).phase in ("Pending", "Taking")


def find_members(view: View, snapshot: Item) -> list[Item]:
    """All snapshots of its group that exist; none if it belongs to no group."""
    marks, project = snapshot.marks(SnapshotMarks), snapshot.envelope.project
    keys = [object_key("snapshot", project, name_member(marks.group, vm)) for vm in marks.members]
    found = [view.get(key) for key in keys]
    return [one for one in found if one is not None and one.marks(SnapshotMarks).members == marks.members]


def plan_together(view: View, snapshot: Item, items: Sequence[Item], silent: bool, now: float) -> Commit | None:
    """Write what changes of a group's snapshots at once, with the orders to their nodes."""
    marks = snapshot.marks(SnapshotMarks)
    members = [_plan_alone(view, item, silent) for item in items]
    there = {facts.name for facts, _ in members}
    missing = [name for vm in marks.members if (name := name_member(marks.group, vm)) not in there]
    draft, events = Draft(), list[Event]()
    grown = False
    for item, (facts, _), plan in zip(items, members, plan_group(members, missing, now), strict=True):
        if item.deleting:
            continue  # it goes by itself
        _change_order(draft, item, facts, plan, now)
        if plan.status != facts.status:
            draft.change(item, status=plan.status)
            grown = grown or plan.status.size > facts.status.size
        if (event := _make_event(item, facts, plan)) is not None:
            events.append(event)
    if grown:
        _write_quota(view, draft, snapshot)
    if draft.writes:
        draft.preconditions += [unchanged(item) for item in items]
    return draft.commit(snapshot.key, events)


def _plan_alone(view: View, snapshot: Item, silent: bool) -> tuple[SnapshotFacts, SnapshotPlan]:
    """Plan one snapshot, its group aside."""
    facts = read_facts(view, snapshot, silent)
    if is_of_volumes(facts.spec):
        return facts, plan_snapshot(facts, {}, {}, "")
    disks = list_disks(facts.place.spec(AllocationSpec)) if facts.place is not None else {}
    parent = find_parent(view, facts.workload, facts.place, snapshot.uid) if facts.workload is not None else ""
    return facts, plan_snapshot(facts, disks, read_spec(facts.workload), parent)


def plan_one(view: View, snapshot: Item, silent: bool, now: float) -> Commit | None:
    """Write a snapshot's status if it changes, with the order to its node; remove a deleted one whose data is gone."""
    if is_fetched(snapshot):
        return _plan_fetched(view, snapshot, now)
    if is_taken_of_volumes(snapshot):
        return _plan_of_volumes(view, snapshot)
    facts, plan = _plan_alone(view, snapshot, silent)
    draft = Draft()
    event = _make_event(snapshot, facts, plan)
    if plan.release:
        write = let_go(snapshot, FINALIZER)
        if write == put(snapshot.envelope):
            return None
        draft.writes.append(write)
        draft.preconditions.append(unchanged(snapshot))
        for child in list_children(view, snapshot):
            stands = msgspec.structs.replace(child.status(SnapshotStatus), parent=plan.status.parent)
            draft.change(child, status=stands)
        return draft.commit(snapshot.key, [event] if event is not None else [])
    _change_order(draft, snapshot, facts, plan, now)
    ends = not snapshot.deleting and is_used_up(view, snapshot, plan.status)
    if plan.status != facts.status or ends:
        draft.change(snapshot, status=plan.status, deleting_since=now if ends else None)
        _guard_quota(view, draft, snapshot, plan.status)
    return draft.commit(snapshot.key, [event] if event is not None else [])


def _plan_fetched(view: View, snapshot: Item, now: float) -> Commit | None:
    status, draft = plan_fetch(view, snapshot), Draft()
    marks = snapshot.marks(SnapshotMarks)
    # A VM stands on it until it is copied; or the node that was lost came back with its disks.
    ends = (marks.instant or marks.automatic == "loss") and not view.find(VMS_BY_ORIGIN, snapshot.key)
    if status == snapshot.status(SnapshotStatus) and not ends:
        return None
    draft.change(snapshot, status=status, deleting_since=now if ends else None)
    about = snapshot.envelope.ref
    failed = [Event("Warning", "Failed", status.message, about, SOURCE)] if status.phase == "Failed" else []
    return draft.commit(snapshot.key, failed)


def _plan_of_volumes(view: View, snapshot: Item) -> Commit | None:
    (status, needed), draft = plan_of_volumes(view, snapshot), Draft()
    if status == snapshot.status(SnapshotStatus):
        return None
    draft.change(snapshot, status=status)
    draft.preconditions += [unchanged(item) for item in needed]
    _guard_quota(view, draft, snapshot, status)
    event = _make_end_event(snapshot, status)
    return draft.commit(snapshot.key, [event] if event is not None else [])


def _change_order(draft: Draft, snapshot: Item, facts: SnapshotFacts, plan: SnapshotPlan, now: float) -> None:
    place = facts.ordered or facts.place
    if not plan.order or place is None:
        return
    spec = place.spec(AllocationSpec)
    orders = [one for one in spec.snapshots if one.uid != snapshot.uid]
    if plan.order == "give":
        given = next((one for one in spec.snapshots if one.uid == snapshot.uid), None)
        new = given or AllocatedSnapshot(uid=snapshot.uid, name=facts.name, memory=plan.memory)
        same = plan.turn == new.turn
        orders.append(new if same else msgspec.structs.replace(new, turn=plan.turn, turn_at=now))
        if given is None and facts.workload is not None:
            draft.preconditions.append(unchanged(facts.workload))
    if orders != spec.snapshots:
        draft.change(place, spec=msgspec.structs.replace(spec, snapshots=orders))


def _guard_quota(view: View, draft: Draft, snapshot: Item, status: SnapshotStatus) -> None:
    """Write the quota with a snapshot, whose size grows without a request: that shows the API server that a sum that it remembers
    holds no more.
    """
    if status.size > snapshot.status(SnapshotStatus).size:
        _write_quota(view, draft, snapshot)


def _write_quota(view: View, draft: Draft, snapshot: Item) -> None:
    if (quota := view.get(quota_key(snapshot.envelope.project or ""))) is not None:
        draft.writes.append(put(quota.envelope))
        draft.preconditions.append(unchanged(quota))


def read_spec(workload: Item | None) -> dict[str, Any]:
    """The workload's spec as a snapshot keeps it: what acted on its first boot is in the disks, and may be secret."""
    if workload is None:
        return {}
    spec: dict[str, Any] = msgspec.to_builtins(spec_of(workload))
    spec |= sizes_of(workload.status(WorkloadStatus), spec)
    if workload.marks(WorkloadMarks).fenced:  # it stands still so that its copy runs
        spec["run"] = "run"
    return {name: value for name, value in spec.items() if name not in ("user_data", "origin")}


def is_used_up(view: View, snapshot: Item, status: SnapshotStatus) -> bool:
    """Whether it was made for a twin that doesn't need it any more: it has begun, or is gone."""
    marks = snapshot.marks(SnapshotMarks)
    if (marks.automatic != "clone" and not marks.backup) or status.phase not in ("Ready", "Unavailable", "Failed"):
        return False
    if any(is_coming(one, one.status(VolumeStatus)) for one in view.find(VOLUMES_BY_SOURCE, snapshot.key)):
        return False
    twins = view.find(VMS_BY_ORIGIN, snapshot.key)
    places = [view.find(ALLOCATIONS_BY_WORKLOAD, twin.uid) for twin in twins]
    return all(any(has_begun(item.report(AllocationReport)) for item in found) for found in places)


def _make_event(snapshot: Item, facts: SnapshotFacts, plan: SnapshotPlan) -> Event | None:
    if plan.release:
        return Event("Normal", "Deleted", f"{facts.name} was deleted", snapshot.envelope.ref, SOURCE)
    return _make_end_event(snapshot, plan.status)


def _make_end_event(snapshot: Item, status: SnapshotStatus) -> Event | None:
    """Event that it is ready now, or can't be had."""
    about = snapshot.envelope.ref
    if snapshot.status(SnapshotStatus).phase == status.phase:
        return None
    if status.phase in ("Failed", "Unavailable"):
        return Event("Warning", status.phase, status.message, about, SOURCE)
    if status.phase == "Ready" and snapshot.status(SnapshotStatus).phase == "Unavailable":
        return Event("Normal", "Ready", f"node {status.node} is back with its data", about, SOURCE)
    if status.phase == "Ready":
        return Event("Normal", "Ready", f"taken on {status.node}, {status.consistency}", about, SOURCE)
    return None


def _snapshot_relevant_state(allocation: Item) -> object:
    """The parts of an allocation that concern its snapshots."""
    spec, report = allocation.spec(AllocationSpec), allocation.report(AllocationReport)
    return (
        *(allocation.uid, allocation.deleting, spec.role, spec.migration, spec.storage, spec.snapshots, spec.origin),
        *(report.snapshots, report.restored, has_begun(report)),
    )
