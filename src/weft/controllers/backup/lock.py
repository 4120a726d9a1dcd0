"""The lock of a backup in an immutable repository: longer, once its time to be kept grew. Pure."""

from __future__ import annotations

import math

from msgspec.structs import replace

from weft.controllers.backup.model import BackupFacts, BackupPlan, make_order
from weft.kinds.backup import BackupSpec, BackupStatus

RETRY_SECONDS = 60.0  # after a node could not lock it


def find_lock(facts: BackupFacts) -> float:
    """Time until which nobody may be able to delete it, in whole seconds; 0: only a repository that was made immutable locks."""
    locks = facts.repository is not None and facts.repository.spec.immutable
    return _end_of(facts.spec, facts.created_at) if locks else 0.0


def is_locked_too_short(spec: BackupSpec, status: BackupStatus, created_at: float) -> bool:
    """True if the lock of a locked backup ends too early."""
    return 0 < status.locked_until < _end_of(spec, created_at)


def plan_lock(facts: BackupFacts, now: float) -> BackupPlan | None:
    """Plan the lock of a backup that is Ready; None: there is nothing to do about it now."""
    status, wanted, order = facts.status, find_lock(facts), facts.status.order
    asked = order if order is not None and order.act == "retain" else None
    if wanted <= status.locked_until:
        return BackupPlan(replace(status, order=None, reason="", message="")) if asked is not None else None
    if asked is None and (order is not None or status.test is not None):
        return None  # it is verified first
    report = facts.asked.report if facts.asked is not None and asked is not None else None
    generation = int(wanted)
    if asked is not None and report is not None and report.phase == "done":
        until = max(report.locked_until, asked.expires_at)
        return BackupPlan(replace(status, order=None, locked_until=until, reason="", message=""))
    if asked is not None and report is not None and report.phase == "failed":
        if 0 <= now - report.finished_at < RETRY_SECONDS:
            said = f"it could not be locked for longer: {report.message}"
            return BackupPlan(replace(status, reason=report.reason, message=said))
        generation = asked.generation + 1
    elif asked is not None and asked.expires_at == wanted and facts.asked is not None:
        return BackupPlan(status)
    if not facts.nodes:
        message = "waits for a node that is ready to lock it for longer"
        return BackupPlan(replace(status, order=None, reason="nodeNotReady", message=message))
    uids = [node.uid for node in facts.nodes]
    failed = report is not None and asked is not None and asked.node_uid in uids
    turn = (uids.index(asked.node_uid) + 1) % len(uids) if failed and asked is not None else 0
    order = replace(make_order(facts, facts.nodes[turn], "retain", generation), expires_at=wanted)
    return BackupPlan(replace(status, order=order, reason="", message=""))


def _end_of(spec: BackupSpec, created_at: float) -> float:
    return float(math.ceil(created_at + spec.keep)) if spec.keep else 0.0
