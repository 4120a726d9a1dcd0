"""Backups that need no snapshot: of a project's objects, which a node copies from the server, and those that a repository has
already, which are adopted. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from weft.controllers.backup.model import BackupFacts, BackupPlan, explain_waiting, make_order
from weft.kinds.backup import UNPROVEN, BackupStatus, is_of_project
from weft.kinds.fields.backup_work import BackupAct, BackupOrder, BackupReport
from weft.kinds.snapshot import SnapshotDisk

_DESCRIBED = ("consistency", "workload_uid", "workload_spec", "image", "image_sha256")


class _Described(msgspec.Struct, kw_only=True):
    """The part of a manifest that a Backup's status has, too; the rest may be anything."""

    of: str
    taken_at: float
    consistency: str = ""
    workload_uid: str = ""
    workload_spec: dict[str, Any] = {}
    disks: dict[str, SnapshotDisk] = {}
    image: str = ""
    image_sha256: str = ""


def needs_no_snapshot(facts: BackupFacts) -> bool:
    return bool(facts.spec.adopts) or is_of_project(facts.spec)


def plan_without_snapshot(facts: BackupFacts, manifest: dict[str, Any], now: float) -> BackupPlan:
    """Plan a backup that is Pending or Copying; ``manifest`` is what the repository is to keep of it."""
    status, act = facts.status, _find_act(facts)
    own = f"project/{facts.name.partition('/')[0]}"
    if act == "copy" and facts.spec.of != own:
        message = f"{facts.spec.of} is backed up in that project, not in {own}"
        return _fail(status, "otherProject", message)
    if waits := explain_waiting(facts.spec.to, facts.repository):
        return BackupPlan(replace(status, order=None, reason=waits[0], message=waits[1]))
    report = facts.asked.report if facts.asked is not None else None
    if report is not None and report.phase == "failed":
        return _fail(status, report.reason or f"{act}Failed", report.message or "its node could not do it")
    if report is not None and report.phase == "done":
        return _adopt(facts, report, now) if act == "adopt" else BackupPlan(_end(status, report, now))
    if not facts.nodes:
        message = "waits for a node that is ready"
        return BackupPlan(replace(status, order=None, reason="nodeNotReady", message=message))
    order = status.order
    if order is None or facts.asked is None:
        begun = replace(status, phase="Copying", taken_at=status.taken_at or now, reason="", message="")
        return BackupPlan(replace(begun, node=facts.nodes[0].name, order=_make_order(facts, act, manifest)))
    message = report.message if report is not None else ""
    return BackupPlan(replace(status, progress=report.progress if report is not None else 0.0, message=message))


def _find_act(facts: BackupFacts) -> BackupAct:
    return "adopt" if facts.spec.adopts else "copy"


def _make_order(facts: BackupFacts, act: BackupAct, manifest: dict[str, Any]) -> BackupOrder:
    return replace(make_order(facts, facts.nodes[0], act), manifest=manifest if act == "copy" else {})


def _end(status: BackupStatus, report: BackupReport, now: float) -> BackupStatus:
    return replace(
        status,
        phase="Ready",
        state=UNPROVEN,
        progress=1.0,
        bytes=report.bytes,
        stored_bytes=report.stored_bytes,
        unique_bytes=report.unique_bytes,
        repository_id=report.repository_id,
        finished_at=report.finished_at or now,
        order=None,
        reason="",
        message="",
    )


def _adopt(facts: BackupFacts, report: BackupReport, now: float) -> BackupPlan:
    """Take over what the repository says of it. Who has its key wrote that, but maybe with another weft."""
    status = facts.status
    try:
        said = msgspec.convert(report.manifest, _Described)
    except msgspec.ValidationError as problem:
        return _fail(status, "notReadable", f"the repository has no backup of weft's under this id: {problem}")
    if said.of != facts.spec.of:
        return _fail(status, "otherBackup", f"the repository has a backup of {said.of[:80]} under this id")
    described = {name: getattr(said, name) for name in _DESCRIBED}
    return BackupPlan(replace(_end(status, report, now), taken_at=said.taken_at, disks=said.disks, **described))


def _fail(status: BackupStatus, reason: str, message: str) -> BackupPlan:
    return BackupPlan(replace(status, phase="Failed", order=None, reason=reason, message=message))
