"""Plan the next step of a backup from the facts. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from weft.controllers.backup.lock import find_lock, plan_lock
from weft.controllers.backup.model import BackupFacts, BackupPlan, explain_waiting, make_order
from weft.controllers.backup.verification import end_test, plan_verification
from weft.controllers.backup.without_snapshot import needs_no_snapshot, plan_without_snapshot
from weft.kinds.backup import UNPROVEN, BackupStatus
from weft.kinds.fields.backup_work import BackupOrder, BackupReport

RETRY_SECONDS = 60.0  # after a node could not do what it was asked


def plan_backup(facts: BackupFacts, now: float) -> BackupPlan:
    status = facts.status
    if facts.deleting:
        return _plan_removal(facts, now)
    if status.phase in ("Pending", "Copying") and needs_no_snapshot(facts):
        return plan_without_snapshot(facts, _describe(facts, replace(status, taken_at=status.taken_at or now)), now)
    match status.phase:
        case "Pending":
            return _begin(facts)
        case "Snapshotting":
            return _await_snapshot(facts)
        case "Copying":
            return _await_copy(facts, now)
        case "Ready":
            return plan_lock(facts, now) or plan_verification(facts, now)
        case _:
            return BackupPlan(status, "drop" if facts.snapshot is not None else "")


def _begin(facts: BackupFacts) -> BackupPlan:
    status = facts.status
    if not facts.subject:
        return _fail(facts, "notFound", f"{facts.spec.of} does not exist")
    if waits := explain_waiting(facts.spec.to, facts.repository):
        return BackupPlan(msgspec.structs.replace(status, reason=waits[0], message=waits[1]))
    if facts.repository is not None and facts.repository.spec.immutable and not facts.spec.keep:
        message = f"backuprepository/{facts.spec.to} is immutable, so it takes a time to keep each backup: --keep 30d"
        return _fail(facts, "keepMissing", message)
    if facts.busy:
        message = f"backup/{facts.busy} of {facts.spec.of} is being made first"
        return BackupPlan(msgspec.structs.replace(status, reason="isBusy", message=message))
    begun = msgspec.structs.replace(
        status, phase="Snapshotting", workload_uid=facts.subject, image=facts.image, reason="", message=""
    )
    return BackupPlan(begun, "make")


def _await_snapshot(facts: BackupFacts) -> BackupPlan:
    status, snapshot = facts.status, facts.snapshot
    if snapshot is None or snapshot.deleting:
        return _fail(facts, "snapshotGone", "its snapshot was deleted before it was copied")
    taken = snapshot.status
    if taken.phase == "Failed":
        return _fail(facts, taken.reason or "snapshotFailed", f"no snapshot could be taken: {taken.message}")
    if taken.phase == "Unavailable":
        return _fail(facts, "snapshotGone", f"its snapshot can't be copied: {taken.message}")
    if taken.phase != "Ready":
        return BackupPlan(msgspec.structs.replace(status, reason=taken.reason, message=taken.message))
    begun = msgspec.structs.replace(
        status,
        phase="Copying",
        taken_at=taken.taken_at,
        consistency=taken.consistency,
        workload_spec=taken.workload_spec,
        disks=taken.disks,
        image_sha256=taken.image_sha256,
        base=facts.earlier.name if facts.earlier is not None else "",
        full_because=f"the snapshot of backup/{facts.lost} was deleted" if facts.lost else "",
        reason="",
        message="",
    )
    return BackupPlan(_order_copy(facts, begun))


def _order_copy(facts: BackupFacts, status: BackupStatus) -> BackupStatus:
    """The order for the node where the snapshot lies now."""
    assert facts.snapshot is not None
    node = next((one for one in facts.nodes if one.uid == facts.snapshot.status.node_uid), None)
    if node is None:
        where = f"node {facts.snapshot.status.node} is not ready"
        return msgspec.structs.replace(status, order=None, reason="nodeNotReady", message=f"waits: {where}")
    earlier = facts.earlier
    order = msgspec.structs.replace(
        make_order(facts, node, "copy"),
        snapshot=facts.snapshot.uid,
        base=earlier.uid if earlier is not None else "",
        base_snapshot=earlier.snapshot_uid if earlier is not None else "",
        manifest=_describe(facts, status),
        disks={name: disk.key for name, disk in status.disks.items()},
        expires_at=find_lock(facts),
    )
    return msgspec.structs.replace(status, node=node.name, order=order, reason="", message="")


def _describe(facts: BackupFacts, status: BackupStatus) -> dict[str, Any]:
    """All that a fabric needs that knows nothing but the repository."""
    return {
        "backup": facts.name,
        "uid": facts.uid,
        "of": facts.spec.of,
        "taken_at": status.taken_at,
        "consistency": status.consistency,
        "workload_uid": status.workload_uid,
        "workload_spec": dict(status.workload_spec),
        "disks": msgspec.to_builtins(status.disks),
        "image": status.image,
        "image_sha256": status.image_sha256,
        "created_at": facts.created_at,
        "keep": facts.spec.keep,
        "set": facts.set,
    }


def _await_copy(facts: BackupFacts, now: float) -> BackupPlan:
    status, snapshot = facts.status, facts.snapshot
    report = facts.asked.report if facts.asked is not None else None
    if report is not None and report.phase == "done":
        return _finish(facts, report, now)
    if report is not None and report.phase == "failed":
        return _fail(facts, report.reason or "copyFailed", report.message or "its node could not copy it")
    if snapshot is not None and snapshot.status.phase == "Unavailable":
        return _fail(facts, "snapshotGone", f"its snapshot can't be copied: {snapshot.status.message}")
    if snapshot is None or snapshot.deleting or snapshot.status.phase != "Ready":
        return _fail(facts, "snapshotGone", "its snapshot is gone before it was copied")
    if facts.repository is None:
        return _fail(facts, "repositoryGone", f"backuprepository/{facts.spec.to} is gone")
    order = status.order
    if order is None or order.node_uid != snapshot.status.node_uid or facts.asked is None:
        return BackupPlan(_order_copy(facts, status))
    progress = report.progress if report is not None else 0.0
    message = report.message if report is not None else ""
    return BackupPlan(msgspec.structs.replace(status, progress=progress, message=message, reason=""))


def _finish(facts: BackupFacts, report: BackupReport, now: float) -> BackupPlan:
    done = msgspec.structs.replace(
        facts.status,
        phase="Ready",
        state=UNPROVEN,
        progress=1.0,
        bytes=report.bytes,
        stored_bytes=report.stored_bytes,
        unique_bytes=report.unique_bytes,
        locked_until=report.locked_until,
        repository_id=report.repository_id,
        full_because=report.full_because or facts.status.full_because,
        base="" if report.full_because else facts.status.base,
        finished_at=report.finished_at or now,
        order=None,
        reason="incomplete" if report.message else "",
        message=report.message,
    )
    return BackupPlan(done, drop_earlier=True)


def _fail(facts: BackupFacts, reason: str, message: str) -> BackupPlan:
    failed = msgspec.structs.replace(facts.status, phase="Failed", order=None, reason=reason, message=message)
    return BackupPlan(failed, "drop" if facts.snapshot is not None else "")


def _plan_removal(facts: BackupFacts, now: float) -> BackupPlan:
    """Remove first the objects of its test, then what may be in the repository, by a node that reaches it."""
    status = msgspec.structs.replace(facts.status, phase="Deleting")
    if status.test is not None:
        return end_test(facts, status)
    drop: Literal["", "drop"] = "drop" if facts.snapshot is not None and not facts.snapshot.deleting else ""
    was_begun = facts.status.disks or facts.status.repository_id
    if not was_begun or facts.repository is None or facts.shared:
        return BackupPlan(status, drop, release=not drop)
    report = facts.asked.report if facts.asked is not None else None
    if status.order is not None and status.order.act == "forget" and report is not None:
        if report.phase == "done":
            return BackupPlan(status, drop, release=not drop)
        if report.phase == "failed":
            said = f"can't be removed from backuprepository/{facts.spec.to}: {report.message}"
            status = msgspec.structs.replace(status, reason=report.reason, message=said)
            if status.order is not None and facts.nodes and not 0 <= now - report.finished_at < RETRY_SECONDS:
                status = msgspec.structs.replace(status, order=_order_again(facts, status.order))
            return BackupPlan(status, drop)
    if not facts.nodes:
        message = "waits for a node that is ready to remove it"
        return BackupPlan(msgspec.structs.replace(status, order=None, reason="nodeNotReady", message=message), drop)
    order = status.order
    if order is not None and order.act == "forget" and facts.asked is not None:
        return BackupPlan(status, drop)
    order = make_order(facts, facts.nodes[0], "forget")
    return BackupPlan(msgspec.structs.replace(status, order=order, reason="", message=""), drop)


def _order_again(facts: BackupFacts, failed: BackupOrder) -> BackupOrder:
    """The same of the next node: the one that failed may not reach the repository."""
    uids = [node.uid for node in facts.nodes]
    turn = (uids.index(failed.node_uid) + 1) % len(uids) if failed.node_uid in uids else 0
    return make_order(facts, facts.nodes[turn], "forget", failed.generation + 1)
