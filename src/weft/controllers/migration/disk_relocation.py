"""Next step of a Migration of mode storage: one disk of a workload is relocated to another pool of its node. Pure.

The order goes into the allocation · its node relocates the disk and reports it · the allocation gets the new pool, in one commit
with the end. Only the node knows how far it is, so its report is waited for.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from weft.controllers.allocation.active import active_allocation
from weft.controllers.migration.abort import find_end
from weft.controllers.migration.facts import MigrationOutcome, MigrationPlanFacts
from weft.controllers.migration.plan import begin_migration
from weft.controllers.migration.progress import end_migration, measure, record_progress, time_left
from weft.informer.view import Item, View
from weft.kinds.allocation import ROOT, AllocationReport, AllocationSpec, is_restoring, list_disks
from weft.kinds.fields.allocated_migration import AllocatedDiskRelocation
from weft.kinds.migration import MigrationSpec, MigrationStatus, workload_key
from weft.kinds.node import NODES_BY_UID, NodeReport, pool_id
from weft.kinds.pool import POOLS_BY_ID, PoolStatus
from weft.objects.quantity import format_bytes

RETRY_SECONDS = 1.0


def plan_storage(view: View, item: Item, facts: MigrationPlanFacts) -> tuple[Item | None, MigrationOutcome]:
    """The workload's allocation, and what to write now: ``source`` is the allocation's spec."""
    spec, status, now = facts.spec, item.status(MigrationStatus), facts.now
    workload = view.get(workload_key(item))
    place = active_allocation(view, workload.uid) if workload is not None else None
    order = place.spec(AllocationSpec).storage if place is not None else None
    if place is not None and order is not None and order.key == item.uid:
        return place, _lead(item, facts, place, order)
    if status.phase not in ("Pending", "Planned"):
        return place, MigrationOutcome(
            status=end_migration(
                status, "Failed", "workloadDeleted", f"{spec.workload} has no allocation any more", now
            )
        )
    begun = begin_migration(facts)
    status = begun.status
    if status.phase not in ("Pending", "Planned") or place is None or workload is None:
        return place, begun
    new = _make_order(view, item, spec, place)
    if status.phase == "Planned":
        return place, replace(begun, status=_describe_planned(spec, status, new))
    if isinstance(new, tuple):
        return place, MigrationOutcome(status=end_migration(status, "Failed", *new, now))
    at = place.spec(AllocationSpec)
    if at.snapshots or is_restoring(at, place.report(AllocationReport)):
        message = "waits until a snapshot is taken, or a restore is done"
        waits = replace(status, reason="takingSnapshot", message=message)
        return place, MigrationOutcome(status=waits, requeue_after=RETRY_SECONDS)
    if order is not None:  # another Migration's order is about to end
        return place, MigrationOutcome(status=status, requeue_after=RETRY_SECONDS)
    status = replace(status, phase="Preparing", source=at.node, target=at.node, reason="", message="")
    return place, MigrationOutcome(
        status=status, source=replace(at, storage=new), requeue_after=time_left(spec, status, now)
    )


def _describe_planned(
    spec: MigrationSpec, status: MigrationStatus, order: AllocatedDiskRelocation | tuple[str, str]
) -> MigrationStatus:
    """A fault is only reported: it may have passed when the migration begins."""
    reason, message = "", f"{spec.volume or 'root disk'} → pool {spec.pool}, on {status.source}"
    if isinstance(order, tuple):
        reason, message = order[0], f"the disk cannot be relocated at present: {order[1]}"
    return replace(status, target=status.source, reason=reason, message=message)


def _make_order(view: View, item: Item, spec: MigrationSpec, place: Item) -> AllocatedDiskRelocation | tuple[str, str]:
    """The order to the node; or why there is none, as token and sentence."""
    at, pool = place.spec(AllocationSpec), spec.pool or ""
    disk = ROOT
    if spec.volume is not None:
        disk = next((volume.uid for volume in at.volumes if volume.name == spec.volume), "")
        if not disk:
            return "volumeNotReady", f"volume {spec.volume} is not attached to {spec.workload}"
    if any(volume.uid == disk and volume.encrypted for volume in at.volumes):
        return (
            "unsupported",
            f"volume {spec.volume} is encrypted, and can't be relocated; copy its data to another volume",
        )
    nodes = view.find(NODES_BY_UID, at.node_uid)
    storage = pool_id(nodes[0].report(NodeReport), pool) if nodes else ""
    if not storage:
        return "noPool", f"{at.node} has no usable storage pool {pool}"
    if list_disks(at)[disk][0] == pool:
        return "alreadyThere", f"the disk is already in storage pool {pool}"
    if list_disks(at)[disk][1] == storage:
        return "alreadyThere", f"storage pool {pool} is the same storage that the disk is on"
    if full := _find_shortage(view, at, disk, storage):
        return "insufficientResources", full
    return AllocatedDiskRelocation(
        key=item.uid, disk=disk, pool=pool, pool_id=storage, bytes_per_second=spec.bytes_per_second
    )


def _find_shortage(view: View, at: AllocationSpec, disk: str, storage: str) -> str:
    """Why the pool can't promise what the disk takes, by its sums of a moment ago; empty if it can."""
    size = next((volume.size for volume in at.volumes if volume.uid == disk), at.resources.disk)
    for pool in view.find(POOLS_BY_ID, storage):
        status, name = pool.status(PoolStatus), pool.envelope.name
        if status.bound and status.given + size > status.bound:
            promised = f"{format_bytes(status.bound)} and has promised {format_bytes(status.given)}"
            return f"pool/{name} may promise {promised}: {format_bytes(size)} more are too much"
    return ""


def _lead(item: Item, facts: MigrationPlanFacts, place: Item, order: AllocatedDiskRelocation) -> MigrationOutcome:
    spec, status, now = facts.spec, item.status(MigrationStatus), facts.now
    at, report = place.spec(AllocationSpec), place.report(AllocationReport).migration
    report = report if report is not None and report.key == order.key else None
    if report is not None:
        status = record_progress(status, report)
        status.actual = measure(status, report)
    if report is not None and report.phase == "takenOver":
        return MigrationOutcome(status=end_migration(status, "Succeeded", "", "", now), source=_relocate(at, order))
    if report is not None and report.phase in ("abandoned", "failed"):
        phase: Literal["Cancelled", "Failed"] = "Cancelled" if status.ending == "Cancelled" else "Failed"
        reason, message = (status.reason, status.message) if status.ending else (report.reason, report.message)
        ended = end_migration(status, phase, reason or "failed", message, now)
        return MigrationOutcome(status=ended, source=replace(at, storage=None))
    if not status.ending and (end := find_end(facts, status)) is not None:
        status = replace(status, ending=end.ending, reason=end.reason, message=end.message)
    cancelled = replace(at, storage=replace(order, cancel=True)) if status.ending and not order.cancel else None
    left = None if status.ending else max(0.1, time_left(spec, status, now))
    return MigrationOutcome(status=status, source=cancelled, requeue_after=left)


def _relocate(at: AllocationSpec, order: AllocatedDiskRelocation) -> AllocationSpec:
    """The allocation with the disk's new pool; the status of workload and volume follows from it."""
    if order.disk == ROOT:
        return replace(at, storage=None, pool=order.pool, pool_id=order.pool_id)
    relocated = [
        replace(volume, pool=order.pool, pool_id=order.pool_id) if volume.uid == order.disk else volume
        for volume in at.volumes
    ]
    return replace(at, storage=None, volumes=relocated)
