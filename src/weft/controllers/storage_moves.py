"""What a Migration of mode storage needs next: one disk of a VM goes to another pool of the node where it is. Pure.

The order: the allocation is told which disk is to go where · its node does it, and says so · the allocation, and the VM or the
volume whose disk it is, say the new pool, in one commit with the end. Until the node's word nothing is known, so it is waited for.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from weft.client.commit import Commit, edit, put, unchanged
from weft.client.indexes import NODES_BY_UID
from weft.client.view import Item, View
from weft.contracts.journal import Event
from weft.controllers.moving import Facts, begin_move, end_move, tell_progress, time_left
from weft.controllers.places import active_allocation
from weft.kinds.allocation import ROOT, AllocatedStorageMove, AllocationReport, AllocationSpec, MoveReport, list_disks
from weft.kinds.migration import MigrationSpec, MigrationStatus, MoveActual, read_workload
from weft.kinds.node import NodeReport, pool_id
from weft.kinds.vm import VmSpec
from weft.kinds.volume import VolumeSpec
from weft.objects.envelope import merge_part
from weft.objects.identity import object_key

LOOK_SECONDS = 1.0
SOURCE = "migrations"


def plan_storage(view: View, item: Item, facts: Facts) -> tuple[Commit | None, float | None]:
    """What to write now, and in how many seconds to look again whatever happens."""
    spec, status, now = facts.spec, item.status(MigrationStatus), facts.now
    vm = view.get(object_key("vm", item.envelope.project, read_workload(spec)[1]))
    place = active_allocation(view, vm.uid) if vm is not None else None
    order = place.spec(AllocationSpec).storage if place is not None else None
    if place is not None and order is not None and order.key == item.uid:
        return _lead(view, item, facts, place, order)
    if status.phase not in ("Pending", "Planned"):
        return _write(item, end_move(status, "Failed", "vmDeleted", "its place is gone", now)), None
    begun = begin_move(facts)
    status = begun.status
    if status.phase != "Pending" or place is None or vm is None:
        return _write(item, status), begun.look_after
    told = _make_order(view, item, spec, place)
    if isinstance(told, tuple):
        return _write(item, end_move(status, "Failed", *told, now)), None
    if order is not None:  # another's is about to end
        return _write(item, status), LOOK_SECONDS
    at = place.spec(AllocationSpec)
    status = replace(status, phase="Preparing", source=at.node, target=at.node)
    return _write(item, status, (place, replace(at, storage=told))), time_left(spec, status, now)


def _make_order(view: View, item: Item, spec: MigrationSpec, place: Item) -> AllocatedStorageMove | tuple[str, str]:
    """What the node is told; or why there is nothing to tell it, as token and sentence."""
    at, pool = place.spec(AllocationSpec), spec.pool or ""
    disk = ROOT
    if spec.volume is not None:
        disk = next((volume.uid for volume in at.volumes if volume.name == spec.volume), "")
        if not disk:
            return "volumeNotReady", f"volume {spec.volume} is none of its VM's"
    nodes = view.find(NODES_BY_UID, at.node_uid)
    storage = pool_id(nodes[0].report(NodeReport), pool) if nodes else ""
    if not storage:
        return "noPool", f"{at.node} has no storage pool {pool} that can be used"
    if list_disks(at)[disk][0] == pool:
        return "alreadyThere", f"it lies in storage pool {pool} already"
    if list_disks(at)[disk][1] == storage:
        return "alreadyThere", f"storage pool {pool} is the same storage as where it lies"
    return AllocatedStorageMove(
        key=item.uid, disk=disk, pool=pool, pool_id=storage, bytes_per_second=spec.bytes_per_second
    )


def _lead(
    view: View, item: Item, facts: Facts, place: Item, order: AllocatedStorageMove
) -> tuple[Commit | None, float | None]:
    spec, status, now = facts.spec, item.status(MigrationStatus), facts.now
    at, said = place.spec(AllocationSpec), place.report(AllocationReport).move
    heard = said if said is not None and said.key == order.key else None
    if heard is not None:
        status = tell_progress(status, heard)
        status.actual = _measure(status, heard)
    if heard is not None and heard.phase == "taken over":
        return _arrive(view, item, status, place, order, now), None
    if heard is not None and heard.phase in ("given up", "failed"):
        phase: Literal["Cancelled", "Failed"] = "Cancelled" if status.ending == "Cancelled" else "Failed"
        reason, message = (status.reason, status.message) if status.ending else (heard.reason, heard.message)
        ended = end_move(status, phase, reason or "failed", message, now)
        return _write(item, ended, (place, replace(at, storage=None))), None
    if not status.ending and (word := _find_end(facts, status)) is not None:
        status = replace(status, ending=word[0], reason=word[1], message=word[2])
    write = (place, replace(at, storage=replace(order, cancel=True))) if status.ending and not order.cancel else None
    return _write(item, status, write), max(0.1, time_left(spec, status, now)) if not status.ending else None


def _find_end(facts: Facts, status: MigrationStatus) -> tuple[Literal["Cancelled", "Failed"], str, str] | None:
    """Why it is to be broken off, if it is."""
    if facts.deleting or facts.spec.cancel:
        return "Cancelled", "cancelled", "broken off as asked"
    if facts.vm is None:
        return "Cancelled", "vmDeleted", "its VM is being deleted"
    if time_left(facts.spec, status, facts.now) <= 0:
        return "Failed", "timedOut", f"not done within {facts.spec.timeout_seconds:g} s"
    return None


def _arrive(
    view: View, item: Item, status: MigrationStatus, place: Item, order: AllocatedStorageMove, now: float
) -> Commit | None:
    """The wish says what is so: allocation, and VM or volume."""
    at, project = place.spec(AllocationSpec), item.envelope.project
    ended = end_move(status, "Succeeded", "", "", now)
    where = {"pool": order.pool, "pool_id": order.pool_id}
    if order.disk == ROOT:
        spec = replace(at, storage=None, **where)
        owner = view.get(object_key("vm", project, at.workload.name))
        wish: VmSpec | VolumeSpec | None = replace(owner.spec(VmSpec), pool=order.pool) if owner is not None else None
    else:
        moved = [replace(volume, **where) if volume.uid == order.disk else volume for volume in at.volumes]
        spec = replace(at, storage=None, volumes=moved)
        name = next((volume.name for volume in at.volumes if volume.uid == order.disk), "")
        owner = view.get(object_key("volume", project, name))
        wish = replace(owner.spec(VolumeSpec), pool=order.pool) if owner is not None else None
    commit = _write(item, ended, (place, spec))
    if commit is None or owner is None or wish is None:
        return commit
    envelope = edit(owner)
    envelope.spec = merge_part(envelope.spec, wish)
    envelope.generation += 1
    return replace(
        commit, writes=[*commit.writes, put(envelope)], preconditions=[*commit.preconditions, unchanged(owner)]
    )


def _measure(status: MigrationStatus, heard: MoveReport) -> MoveActual:
    former = status.actual or MoveActual()
    return MoveActual(
        duration_seconds=max(former.duration_seconds, heard.elapsed_ms / 1000),
        pause_ms=max(former.pause_ms, heard.pause_ms),
        bytes=max(former.bytes, heard.sent_bytes),
    )


def _write(item: Item, status: MigrationStatus, place: tuple[Item, AllocationSpec] | None = None) -> Commit | None:
    writes, preconditions, events = [], [unchanged(item)], []
    former = item.status(MigrationStatus)
    if place is not None:
        envelope = edit(place[0])
        envelope.spec = merge_part(envelope.spec, place[1])
        envelope.generation += 1
        writes.append(put(envelope))
        preconditions.append(unchanged(place[0]))
    if status != former:
        envelope = edit(item)
        envelope.status = merge_part(envelope.status, status)
        writes.append(put(envelope))
        if status.phase != former.phase:
            bad: Literal["Warning", "Normal"] = "Warning" if status.phase == "Failed" else "Normal"
            spec = item.spec(MigrationSpec)
            what = f"volume {spec.volume}" if spec.volume else "root disk"
            why = f": {status.message}" if status.message else ""
            events.append(Event(bad, status.phase, f"{what} → pool {spec.pool}{why}", item.envelope.ref, SOURCE))
    return Commit(item.key, list(writes), list(preconditions), events) if writes else None
