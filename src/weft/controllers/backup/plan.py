"""What a backup needs next, from what is known of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from weft.kinds.backup import DAMAGED, VERIFY_FAILED, BackupSpec, BackupStatus, BackupVerification
from weft.kinds.backup_repository import BackupRepositorySpec, BackupRepositoryStatus
from weft.kinds.fields.backup_work import BackupAct, BackupOrder, BackupReport
from weft.kinds.snapshot import SnapshotStatus

RETRY_SECONDS = 60.0  # after a node could not do what it was asked
UNPROVEN, VERIFIED = "unproven", "verified"


class Repository(msgspec.Struct, frozen=True):
    name: str
    uid: str
    spec: BackupRepositorySpec
    status: BackupRepositoryStatus


class Node(msgspec.Struct, frozen=True):
    """One that is Ready."""

    name: str
    uid: str
    report: BackupReport | None = None  # on the backup's order, if that is the node's


class Snapshot(msgspec.Struct, frozen=True):
    name: str
    uid: str
    deleting: bool
    status: SnapshotStatus


class Earlier(msgspec.Struct, frozen=True):
    """The backup that this one may continue."""

    name: str
    uid: str
    snapshot_uid: str


class BackupFacts(msgspec.Struct, frozen=True):
    name: str  # PROJECT/NAME
    uid: str
    deleting: bool
    spec: BackupSpec
    status: BackupStatus
    created_at: float
    repository: Repository | None = None
    subject: str = ""  # uid of what it is of; "": it is gone
    snapshot: Snapshot | None = None
    nodes: Sequence[Node] = ()  # those that could do its work, the best first
    asked: Node | None = None  # the one that its order is for, if it is Ready
    busy: str = ""  # name of another backup of the same that is being made
    earlier: Earlier | None = None
    image: str = ""


class BackupPlan(msgspec.Struct, frozen=True):
    status: BackupStatus
    snapshot: Literal["", "make", "drop"] = ""
    drop_earlier: bool = False  # the snapshots that backups before it began from: nobody continues those any more
    release: bool = False


def plan_backup(facts: BackupFacts, now: float) -> BackupPlan:
    status = facts.status
    if facts.deleting:
        return _plan_removal(facts, now)
    match status.phase:
        case "Pending":
            return _begin(facts)
        case "Snapshotting":
            return _await_snapshot(facts)
        case "Copying":
            return _await_copy(facts, now)
        case "Ready":
            return _plan_ready(facts, now)
        case _:
            return BackupPlan(status, "drop" if facts.snapshot is not None else "")


def _begin(facts: BackupFacts) -> BackupPlan:
    status = facts.status
    if not facts.subject:
        return _fail(facts, "notFound", f"{facts.spec.of} does not exist")
    if facts.repository is None or facts.repository.status.phase != "Ready":
        why = facts.repository.status.message if facts.repository is not None else ""
        message = f"backuprepository/{facts.spec.to} is not ready{': ' if why else ''}{why}"
        return BackupPlan(msgspec.structs.replace(status, reason="repositoryNotReady", message=message))
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
        _make_order(facts, node, "copy"),
        snapshot=facts.snapshot.uid,
        base=earlier.uid if earlier is not None else "",
        base_snapshot=earlier.snapshot_uid if earlier is not None else "",
        manifest=_describe(facts, status),
        disks={name: disk.key for name, disk in status.disks.items()},
        expires_at=_find_lock(facts),
    )
    return msgspec.structs.replace(status, node=node.name, order=order, reason="", message="")


def _find_lock(facts: BackupFacts) -> float:
    """Until when nobody can delete it; 0: only a repository that was made immutable locks."""
    locks = facts.repository is not None and facts.repository.spec.immutable
    return facts.created_at + facts.spec.keep if locks and facts.spec.keep else 0.0


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
    }


def _make_order(facts: BackupFacts, node: Node, act: BackupAct, generation: int = 0) -> BackupOrder:
    repository = facts.repository
    assert repository is not None
    return BackupOrder(
        uid=facts.uid,
        act=act,
        node_uid=node.uid,
        generation=generation,
        repository=repository.name,
        repository_uid=repository.uid,
        repository_id=repository.status.id,
        url=repository.spec.url,
        immutable=repository.spec.immutable,
        backup=facts.uid,
        name=facts.name,
    )


def _await_copy(facts: BackupFacts, now: float) -> BackupPlan:
    status, snapshot = facts.status, facts.snapshot
    report = facts.asked.report if facts.asked is not None else None
    if report is not None and report.phase == "done":
        return _finish(facts, report, now)
    if report is not None and report.phase == "failed":
        return _fail(facts, report.reason or "copyFailed", report.message or "its node could not copy it")
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
        repository_id=report.repository_id,
        full_because=report.full_because,
        base="" if report.full_because else facts.status.base,
        finished_at=report.finished_at or now,
        order=None,
        reason="",
        message="",
    )
    return BackupPlan(done, drop_earlier=True)


def _plan_ready(facts: BackupFacts, now: float) -> BackupPlan:
    """It may be asked to be verified."""
    status, asked = facts.status, facts.spec.verify_generation
    if status.verification.generation >= asked:
        return BackupPlan(msgspec.structs.replace(status, order=None))
    report = facts.asked.report if facts.asked is not None else None
    if report is not None and report.phase == "done":
        return BackupPlan(_note_verified(status, report, asked, now))
    if report is not None and report.phase == "failed" and report.damaged:
        return BackupPlan(_note_verified(status, report, asked, now))
    if facts.repository is None or not facts.nodes:
        message = "waits for a node that is ready to verify it"
        return BackupPlan(msgspec.structs.replace(status, order=None, reason="nodeNotReady", message=message))
    if report is not None and report.phase == "failed":
        ended = BackupVerification(generation=asked)
        message = f"not verified: {report.message}"
        return BackupPlan(
            msgspec.structs.replace(status, verification=ended, order=None, reason=VERIFY_FAILED, message=message)
        )
    order = status.order
    if order is None or order.generation != asked or facts.asked is None:
        order = _make_order(facts, facts.nodes[0], "verify", asked)
    progress = f"verified {round(100 * report.progress)} %" if report is not None and report.progress else ""
    return BackupPlan(msgspec.structs.replace(status, order=order, reason="", message=progress))


def _note_verified(status: BackupStatus, report: BackupReport, asked: int, now: float) -> BackupStatus:
    return msgspec.structs.replace(
        status,
        state=DAMAGED if report.damaged else VERIFIED,
        verified_at=report.finished_at or now,
        verify="read",
        verification=BackupVerification(generation=asked, damaged=report.damaged),
        unique_bytes=report.unique_bytes or status.unique_bytes,
        order=None,
        reason="damaged" if report.damaged else "",
        message=", ".join(report.damaged[:3]),
    )


def _fail(facts: BackupFacts, reason: str, message: str) -> BackupPlan:
    failed = msgspec.structs.replace(facts.status, phase="Failed", order=None, reason=reason, message=message)
    return BackupPlan(failed, "drop" if facts.snapshot is not None else "")


def _plan_removal(facts: BackupFacts, now: float) -> BackupPlan:
    """What may be in the repository is removed first, by a node that reaches it."""
    status = msgspec.structs.replace(facts.status, phase="Deleting")
    drop: Literal["", "drop"] = "drop" if facts.snapshot is not None and not facts.snapshot.deleting else ""
    was_begun = facts.status.disks or facts.status.repository_id
    if not was_begun or facts.repository is None:
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
    order = _make_order(facts, facts.nodes[0], "forget")
    return BackupPlan(msgspec.structs.replace(status, order=order, reason="", message=""), drop)


def _order_again(facts: BackupFacts, failed: BackupOrder) -> BackupOrder:
    """The same of the next node: the one that failed may not reach the repository."""
    uids = [node.uid for node in facts.nodes]
    turn = (uids.index(failed.node_uid) + 1) % len(uids) if failed.node_uid in uids else 0
    return _make_order(facts, facts.nodes[turn], "forget", failed.generation + 1)
