"""Plan a snapshot's next step from the facts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from weft.controllers.snapshot.facts import SnapshotFacts, list_orders
from weft.controllers.snapshot.lineage import find_restore
from weft.kinds.allocation import AllocationReport, AllocationSpec, is_restoring
from weft.kinds.fields.allocated_snapshot import GroupTurn, SnapshotReport
from weft.kinds.parts.snapshot.verbs import find_lost_memory
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus
from weft.kinds.snapshot import DATA_GONE, SnapshotDisk, SnapshotStatus
from weft.kinds.volume import NODE_DELETED, describe_deleted
from weft.objects.quantity import format_bytes

# Reasons of the phase Failed after which a node may list the snapshot nevertheless: then it is ready.
PLACE_LOST = "placeLost"
VM_GONE = "vmGone"
NO_MEMORY = "noMemory"
NODE_SILENT = "nodeNotReady"  # of a phase in which it waits


class SnapshotPlan(msgspec.Struct, frozen=True):
    status: SnapshotStatus
    order: Literal["", "give", "take back"] = ""  # to the node of the allocation
    memory: bool = False  # the order is to keep the memory, too
    release: bool = False  # nothing of it is left: the finalizer goes
    turn: GroupTurn = ""  # of a group's member, with the order "give"


def plan_snapshot(
    facts: SnapshotFacts, disks: Mapping[str, SnapshotDisk], workload_spec: Mapping[str, Any], parent: str
) -> SnapshotPlan:
    """``disks`` and ``workload_spec`` are those of the workload now, and ``parent`` is the snapshot that it stands on."""
    status = _fold_kept(facts)
    if facts.deleting:
        return _plan_removal(facts, msgspec.structs.replace(status, phase="Deleting"))
    if status.phase in ("Ready", "Unavailable"):
        return _plan_ready(facts, status)
    if status.phase == "Failed":
        if facts.kept and status.reason in (DATA_GONE, *(() if facts.marks.group else (PLACE_LOST, VM_GONE))):
            return SnapshotPlan(msgspec.structs.replace(status, phase="Ready", reason="", message=""))
        return end_turn(facts, msgspec.structs.replace(status, size=0, memory=0) if facts.marks.group else status)
    if facts.report is not None and facts.report.phase != "taking":
        return SnapshotPlan(_fold_report(status, facts.report), "take back" if facts.ordered is not None else "")
    if facts.ordered is not None:
        message = facts.report.message if facts.report is not None else ""
        reason = facts.report.reason if facts.report is not None else ""
        if facts.silent:
            reason, message = NODE_SILENT, f"waits: {_describe_silence(facts)}"
        return SnapshotPlan(msgspec.structs.replace(status, phase="Taking", reason=reason, message=message))
    if status.phase == "Taking":
        return SnapshotPlan(_lose_place(facts, status))
    return _plan_order(facts, status, disks, workload_spec, parent)


def end_turn(facts: SnapshotFacts, status: SnapshotStatus) -> SnapshotPlan:
    """The plan of one that has failed. A member of a group keeps its order until its node has said what became of it, since it may
    be about to take it."""
    if facts.turn and (facts.report is None or facts.report.phase == "taking"):
        return SnapshotPlan(status, "" if facts.turn == "drop" else "give", turn="drop")
    return SnapshotPlan(status, "take back" if facts.ordered is not None else "")


def _fold_kept(facts: SnapshotFacts) -> SnapshotStatus:
    """The status with what the nodes list: its home, or another one if that is gone or lists it no more."""
    status = facts.status
    home = [one for one in facts.kept if one.node_uid == status.node_uid]
    elsewhere = facts.kept if not facts.home_exists or (facts.home_reports and status.listed) else ()
    kept = next(iter([*home, *elsewhere]), None)
    if kept is None:
        return status
    return msgspec.structs.replace(
        status,
        node=kept.node,
        node_uid=kept.node_uid,
        size=kept.snapshot.size or status.size,
        memory=kept.snapshot.memory or status.memory,
        pool_id=kept.snapshot.pool_id or status.pool_id,
        listed=True,
    )


def _fold_report(status: SnapshotStatus, report: SnapshotReport) -> SnapshotStatus:
    if report.phase == "failed":
        reason, message = report.reason or "driverFailed", report.message or "the node could not take it"
        return msgspec.structs.replace(status, phase="Failed", reason=reason, message=message)
    disks = {
        name: msgspec.structs.replace(disk, size=report.disks.get(disk.key, disk.size))
        for name, disk in status.disks.items()
        if not report.disks or disk.key in report.disks
    }
    return msgspec.structs.replace(
        status,
        phase="Ready",
        consistency=report.consistency,
        size=status.size or report.size,
        memory=status.memory or report.memory,
        disks=disks,
        pause_ms=report.pause_ms,
        taken_at=report.taken_at or None,
        pool=report.pool or status.pool,
        pool_id=report.pool_id or status.pool_id,
        reason=report.reason,
        message=report.message,
    )


def _plan_ready(facts: SnapshotFacts, status: SnapshotStatus) -> SnapshotPlan:
    """A snapshot that its node listed, and lists no more, has lost its data. One whose node was deleted may come back with it."""
    back: Literal["", "take back"] = "take back" if facts.ordered is not None else ""
    if facts.is_lost and not facts.kept:
        if facts.unknown or facts.on_the_way:
            return SnapshotPlan(status, back)
        message = describe_deleted(status.node)
        gone = msgspec.structs.replace(status, phase="Unavailable", reason=NODE_DELETED, message=message)
        return SnapshotPlan(gone, back)
    if status.phase == "Unavailable":
        status = msgspec.structs.replace(status, phase="Ready", reason="", message="")
    if facts.kept or not status.listed or not facts.home_reports or facts.unknown:
        return SnapshotPlan(status, back)
    message = f"node {status.node} has its data no more"
    return SnapshotPlan(
        msgspec.structs.replace(status, phase="Failed", size=0, reason=DATA_GONE, message=message), back
    )


def _lose_place(facts: SnapshotFacts, status: SnapshotStatus) -> SnapshotStatus:
    """Nobody will take it any more, since the workload left its node or is gone. A node that lists it has it, though."""
    if facts.kept:
        return msgspec.structs.replace(status, phase="Ready", reason="", message="")
    if facts.unknown or _is_awaited(facts):
        return status
    reason, message = PLACE_LOST, f"{facts.what} left node {status.node} before the snapshot was taken"
    if facts.workload is None or facts.workload.deleting:
        reason, message = VM_GONE, f"{facts.what} was deleted before the snapshot was taken"
    return msgspec.structs.replace(status, phase="Failed", reason=reason, message=message)


def _is_awaited(facts: SnapshotFacts) -> bool:
    """Whether a restore that is done kept what stood there as this snapshot: its node will list it."""
    origin = facts.place.spec(AllocationSpec).origin if facts.place is not None else None
    return origin is not None and origin.keeps is not None and origin.keeps.uid == facts.uid


def _plan_order(
    facts: SnapshotFacts,
    status: SnapshotStatus,
    disks: Mapping[str, SnapshotDisk],
    workload_spec: Mapping[str, Any],
    parent: str,
) -> SnapshotPlan:
    if facts.workload is None or facts.workload.deleting:
        gone = "is gone" if facts.workload is None else "is being deleted"
        failed = msgspec.structs.replace(status, phase="Failed", reason=VM_GONE, message=f"{facts.what} {gone}")
        return SnapshotPlan(failed)
    if departed := facts.workload.marks(WorkloadMarks).departed:
        message = f"{facts.what} migrated to {departed} before the snapshot was taken"
        return SnapshotPlan(msgspec.structs.replace(status, phase="Failed", reason=VM_GONE, message=message))
    waits = _find_obstacle(facts)
    if waits is not None:
        reason, message = waits
        return SnapshotPlan(msgspec.structs.replace(status, phase="Pending", reason=reason, message=message))
    assert facts.place is not None
    place, memory = facts.place.spec(AllocationSpec), facts.spec.memory
    if memory and (lost := find_lost_memory(facts.what, facts.workload.status(WorkloadStatus).phase)):
        if not facts.marks.automatic:  # people meant it; a schedule or a twin does without
            return SnapshotPlan(msgspec.structs.replace(status, phase="Failed", reason=NO_MEMORY, message=lost))
        memory = False
    given = msgspec.structs.replace(
        status,
        phase="Taking",
        reason="",
        message="",
        workload_uid=facts.workload.uid,
        workload_spec=dict(workload_spec),
        disks=dict(disks),
        parent=parent,
        restored=find_restore(facts.workload, facts.place)[0],
        node=place.node,
        node_uid=place.node_uid,
        pool=place.pool,
        pool_id=place.pool_id,
        image_sha256=place.image.sha256 if place.image is not None else "",
    )
    return SnapshotPlan(given, "give", memory=memory)


def _find_obstacle(facts: SnapshotFacts) -> tuple[str, str] | None:
    """Why the workload's node can't take it yet, as reason and sentence."""
    place = facts.place
    if place is None or place.deleting:
        return "noPlace", f"{facts.what} has no place, so it has no disks"
    spec = place.spec(AllocationSpec)
    if spec.migration is not None:
        migration = facts.workload.status(WorkloadStatus).migration if facts.workload is not None else ""
        until = f"until migration/{migration} has ended" if migration else "until that has ended"
        return "isMigrating", f"{facts.what} is migrating: the snapshot waits {until}"
    if spec.storage is not None:
        return "isMigrating", f"a disk of {facts.what} is changing pools: the snapshot waits"
    if is_restoring(spec, place.report(AllocationReport)):
        return "isRestoring", f"{facts.what} is being restored: the snapshot waits"
    others = [one.name for one in list_orders(place) if one.uid != facts.uid]
    if others:
        silence = f"; {_describe_silence(facts)}" if facts.silent else ""
        return "isTaking", f"snapshot/{others[0]} of {facts.what} is being taken first{silence}"
    return None


def _describe_silence(facts: SnapshotFacts) -> str:
    return f"node {facts.silent} sends no heartbeat"


def _plan_removal(facts: SnapshotFacts, status: SnapshotStatus) -> SnapshotPlan:
    """Its node first takes it to the end, if that is its order: otherwise it might keep a snapshot that nobody knows."""
    report = facts.report
    if facts.ordered is not None and (report is None or report.phase == "taking") and not facts.ordered.deleting:
        silence = f"; {_describe_silence(facts)}" if facts.silent else ""
        message = f"removed as soon as its node has ended taking it{silence}"
        taking = msgspec.structs.replace(status, message=message)
        return end_turn(facts, taking) if facts.turn else SnapshotPlan(taking)
    if facts.ordered is not None and not facts.ordered.deleting:
        return SnapshotPlan(msgspec.structs.replace(status, message=""), "take back")
    if facts.ordered is not None or _is_awaited(facts):
        waits = facts.ordered is not None or (not status.listed and not facts.kept)
        if waits:
            return SnapshotPlan(msgspec.structs.replace(status, message=f"waits for node {status.node}"))
    if facts.on_the_way:
        message = f"{facts.what} migrates, or its disks change pools: it is removed once its disks have arrived"
        return SnapshotPlan(msgspec.structs.replace(status, message=message))
    if facts.kept:
        where = ", ".join(one.node for one in facts.kept)
        held = format_bytes(sum(one.snapshot.size for one in facts.kept))
        return SnapshotPlan(msgspec.structs.replace(status, message=f"{where} still has {held} of it"))
    if facts.unknown:
        message = "waits for nodes that have not reported since the store was restored"
        return SnapshotPlan(msgspec.structs.replace(status, message=message))
    return SnapshotPlan(status, release=True)
