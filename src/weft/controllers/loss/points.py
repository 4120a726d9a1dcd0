"""Follows workloads that go on from a snapshot elsewhere: takes their mark away once they have begun from there, or have their own
disks again; and gives them another snapshot if that can't be had.

Reads workloads, their allocations, snapshots, backups, nodes; writes the mark, and makes snapshots that are fetched from backups.
Woken by workloads and allocations, and by the clock while one has no place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.loss.source import find_point, make_point
from weft.informer.commit import Commit, Draft
from weft.informer.view import Changed, Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationReport, AllocationSpec, has_begun
from weft.kinds.node import NODES_BY_UID, NodeStatus
from weft.kinds.parts.workload import WORKLOADS_BY_UID, WorkloadMarks, WorkloadPoint
from weft.kinds.snapshot import SnapshotStatus
from weft.objects.identity import object_key

CHECK_EVERY_SECONDS = 5.0
RETRY_SECONDS = 30.0  # after a snapshot was ordered, another may be, if that one can't be had
PATIENCE_SECONDS = (
    120.0  # the same if its node waits for the repository, or has no place for the workload: then ever later
)
SOURCE = "loss"
ALTERED = ("backupAltered", "backupGone")  # a node's word that a backup can't be had whole


class Points:
    name = "points of lost guests"
    kinds = ("vm", "allocation")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "vm":
            return (change.key,) if change.new is not None and read_point(change.new) is not None else ()
        uid = change.item.spec(AllocationSpec).workload.uid
        return [item.key for item in view.find(WORKLOADS_BY_UID, uid) if read_point(item) is not None]

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            workload = view.get(key)
            point = read_point(workload) if workload is not None else None
            if workload is None or point is None or workload.deleting:
                continue
            if view.count(ALLOCATIONS_BY_WORKLOAD, workload.uid):
                commit = plan_end(view, workload, point)
            else:
                commit = plan_other(view, workload, point, now)
                plan.later[key] = CHECK_EVERY_SECONDS
            plan.commits += [commit] if commit is not None else []
        return plan


def read_point(workload: Item) -> WorkloadPoint | None:
    """Snapshot that it goes on from, and hasn't begun from yet."""
    return workload.marks(WorkloadMarks).continues


def plan_end(view: View, workload: Item, point: WorkloadPoint) -> Commit | None:
    """Take the mark away once it has begun: a later place of it must not go back there."""
    if not any(_is_over(place, point) for place in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)):
        return None
    draft = Draft()
    draft.change(workload, marks=replace(workload.marks(WorkloadMarks), continues=None))
    return draft.commit(workload.key)


def _is_over(place: Item, point: WorkloadPoint) -> bool:
    origin = place.spec(AllocationSpec).origin
    began_there = origin is not None and origin.snapshot == point.snapshot_uid
    return not began_there or has_begun(place.report(AllocationReport))


def plan_other(view: View, workload: Item, point: WorkloadPoint, now: float) -> Commit | None:
    """Have another snapshot take the place of one that can't be had; that one goes, since nobody needs it."""
    trouble, is_altered = find_trouble(view, workload, point, now)
    if not trouble:
        return None
    passed_over = [*point.passed_over, point.backup] if is_altered and point.backup else point.passed_over
    found = find_point(view, workload, passed_over)
    if isinstance(found, str):
        return None
    draft = Draft(*([found.read] if found.read is not None else []))
    new = make_point(draft, workload, found, now)
    new = replace(new, lost_at=point.lost_at) if new is not None else None
    draft.change(workload, marks=replace(workload.marks(WorkloadMarks), continues=new))
    said = f"{trouble}; it goes on{found.said}"
    return draft.commit(workload.key, [Event("Warning", "PointChanged", said, workload.envelope.ref, SOURCE)])


def find_trouble(view: View, workload: Item, point: WorkloadPoint, now: float) -> tuple[str, bool]:
    """Why the snapshot can't be had, after a while, or empty; and whether its backup is damaged."""
    snapshot, what = (
        view.get(object_key("snapshot", workload.envelope.project, point.snapshot)),
        f"snapshot/{point.snapshot}",
    )
    if snapshot is None or snapshot.uid != point.snapshot_uid or snapshot.deleting:
        return f"{what} is gone", False
    status, age = snapshot.status(SnapshotStatus), now - snapshot.envelope.created_at
    if age >= RETRY_SECONDS and status.phase in ("Failed", "Unavailable"):
        return f"{what} is {status.phase}: {status.message}", status.reason in ALTERED
    if age >= PATIENCE_SECONDS and status.reason == "repositoryWaits":
        return f"{what}: {status.message}", False
    homes = view.find(NODES_BY_UID, status.node_uid) if status.node_uid else ()
    if status.phase != "Ready":
        return "", False
    if age >= RETRY_SECONDS and not any(one.status(NodeStatus).phase == "Ready" for one in homes):
        return f"{what} is on node {status.node}, which isn't ready", False
    placed, waits = (
        workload.envelope.condition("Placed"),
        max(PATIENCE_SECONDS, snapshot.envelope.created_at - point.lost_at),
    )
    if (
        point.backup
        and placed is not None
        and placed.status == "False"
        and age >= waits
        and spec_of(workload).run == "run"
    ):
        return f"{what} is on node {status.node}, where it gets no place", False
    return "", False
