"""Has backups made: a snapshot first, then a node copies it into the repository. Records how that goes, and what a verification
found; has a deleted backup removed from its repository.

Reads backups, repositories, snapshots, VMs, volumes, networks, nodes; writes backup.status with the order for its node, makes and
deletes the snapshots of backups and what boots them, releases the finalizer "backup". Woken by any of those. Nodes get the order
with the API server's answers to their reports, and report on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.controllers.backup.boot import drop_test, make_test
from weft.controllers.backup.facts import read_facts
from weft.controllers.backup.lock import is_locked_too_short
from weft.controllers.backup.model import BackupFacts, BackupPlan
from weft.controllers.backup.plan import RETRY_SECONDS, plan_backup
from weft.controllers.backup.verification import TEST_SECONDS, is_booted_next
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.backup import (
    BACKUPS_BY_REPOSITORY,
    BACKUPS_BY_SNAPSHOT,
    BACKUPS_BY_SUBJECT,
    BACKUPS_BY_UID,
    BackupActions,
    BackupSpec,
    BackupStatus,
    subject_key,
)
from weft.kinds.backup_repository import BackupRepositoryStatus
from weft.kinds.fields.backup_verification import BackupVerification
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.snapshot import SNAPSHOT, SNAPSHOTS_BY_UID, SnapshotMarks, SnapshotSpec
from weft.objects.identity import cut_name, new_uid
from weft.objects.quantity import format_bytes

FINALIZER, SOURCE = "backup", "backups"


class Backups:
    name = "backups"
    kinds = ("backup", "backuprepository", "snapshot", "vm", "volume", "network", "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        tested = change.item.envelope.owner_key("backup")
        return [*self._route(view, change), *([tested] if tested is not None else [])]

    def _route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "backup":
                return self._route_backup(view, change)
            case "backuprepository":
                if has_changed(change, lambda item: item.status(BackupRepositoryStatus).phase):
                    return [item.key for item in view.find(BACKUPS_BY_REPOSITORY, change.item.envelope.name)]
            case "snapshot":
                return [item.key for item in view.find(BACKUPS_BY_SNAPSHOT, change.item.uid)]
            case "vm" | "volume" | "container":
                if has_changed(change, lambda item: (item.uid, item.deleting)):
                    return [item.key for item in view.find(BACKUPS_BY_SUBJECT, change.item.key)]
            case "node":
                return self._route_node(view, change)
        return ()

    def _route_backup(self, view: View, change: Changed) -> Iterable[str]:
        if has_changed(change, lambda item: (item.uid, item.deleting, item.status(BackupStatus).phase)):
            return [change.key, *(item.key for item in view.find(BACKUPS_BY_SUBJECT, subject_key(change.item)))]
        return (change.key,)

    def _route_node(self, view: View, change: Changed) -> Iterable[str]:
        if has_changed(change, lambda node: node.status(NodeStatus).phase == "Ready"):
            return [item.key for item in view.of_kind("backup").values() if is_active(item)]
        if not has_changed(change, lambda node: node.report(NodeReport).orders.backup):
            return ()
        items = [item for item in (change.old, change.new) if item is not None]
        uids = {one.uid for item in items for one in item.report(NodeReport).orders.backup}
        return [item.key for uid in sorted(uids) for item in view.find(BACKUPS_BY_UID, uid)]

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            backup = view.get(key)
            if backup is None:
                continue
            commit = plan_one(view, backup, now)
            if commit is not None:
                plan.commits.append(commit)
            elif is_active(backup):
                boots = is_booted_next(backup.actions(BackupActions), backup.status(BackupStatus))
                plan.later[key] = TEST_SECONDS if boots else RETRY_SECONDS
        return plan


def is_active(backup: Item) -> bool:
    """Whether it needs anything done."""
    status = backup.status(BackupStatus)
    asked = backup.actions(BackupActions).verify_generation > status.verify.generation or status.test is not None
    short = is_locked_too_short(backup.spec(BackupSpec), status, backup.envelope.created_at)
    return backup.deleting or status.phase in ("Pending", "Snapshotting", "Copying") or asked or short


def plan_one(view: View, backup: Item, now: float) -> Commit | None:
    facts = read_facts(view, backup)
    plan = plan_backup(facts, now)
    if plan.release:
        return Commit(
            backup.key, [let_go(backup, FINALIZER)], [unchanged(backup)], [_make_event(backup, "Deleted", "deleted")]
        )
    draft, status = Draft(), plan.status
    if plan.snapshot == "make":
        status = _make_snapshot(draft, backup, status, now)
    elif plan.snapshot == "drop":
        _drop_snapshot(draft, view, facts.status.snapshot_uid, now)
    if plan.test == "make":
        status = make_test(draft, backup, status, now)
    elif plan.test == "drop":
        drop_test(draft, view, backup, now)
    if plan.drop_earlier:
        _drop_earlier(draft, view, backup, now)
    events = _list_events(backup, facts, plan)
    if status != facts.status:
        draft.change(backup, status=status)
    return draft.commit(backup.key, events)


def _make_snapshot(draft: Draft, backup: Item, status: BackupStatus, now: float) -> BackupStatus:
    """A snapshot of what the backup is of; its name tells whose it is."""
    uid, envelope = new_uid(), backup.envelope
    name = cut_name(envelope.name, f"-{uid[:12]}")
    spec, marks = SnapshotSpec(of=backup.spec(BackupSpec).of), SnapshotMarks(automatic="backup", image=status.image)
    draft.make(SNAPSHOT.make(name, spec, now, uid=uid, project=envelope.project, creator=envelope.creator, marks=marks))
    return msgspec.structs.replace(status, snapshot=name, snapshot_uid=uid)


def _drop_snapshot(draft: Draft, view: View, uid: str, now: float) -> None:
    for item in view.find(SNAPSHOTS_BY_UID, uid) if uid else ():
        if not item.deleting:
            draft.change(item, deleting_since=now)


def _drop_earlier(draft: Draft, view: View, backup: Item, now: float) -> None:
    """Delete the snapshots that backups before it were copied from: the next backup continues this one."""
    to = backup.spec(BackupSpec).to
    for item in view.find(BACKUPS_BY_SUBJECT, subject_key(backup)):
        status = item.status(BackupStatus)
        if item.uid == backup.uid or status.phase != "Ready" or item.spec(BackupSpec).to != to:
            continue
        if status.snapshot_uid and (status.taken_at or 0.0) < (backup.status(BackupStatus).taken_at or 0.0):
            _drop_snapshot(draft, view, status.snapshot_uid, now)


def _list_events(backup: Item, facts: BackupFacts, plan: BackupPlan) -> list[Event]:
    was, now = facts.status, plan.status
    if now.verify != was.verify:
        return _announce_verdict(backup, now.verify)
    if now.phase == was.phase:
        return []
    if now.phase == "Failed":
        return [_make_event(backup, "Failed", now.message, "Warning")]
    if now.phase == "Ready":
        of = f"continues backup/{now.base}" if now.base else "full"
        ready = _make_event(backup, "Ready", f"{of}, {format_bytes(now.stored_bytes)} stored in {facts.spec.to}")
        return [ready, *([_make_event(backup, "Incomplete", now.message, "Warning")] if now.message else [])]
    return []


def _announce_verdict(backup: Item, verify: BackupVerification) -> list[Event]:
    match verify.result:
        case "damaged":
            return [_make_event(backup, "Damaged", f"damaged: {', '.join(verify.damaged[:3])}", "Warning")]
        case "failed":
            return [_make_event(backup, "BootFailed", verify.message, "Warning")]
        case "undone":
            return [_make_event(backup, "NotVerified", verify.message, "Warning")]
    return (
        [_make_event(backup, "Booted", f"answered {verify.boot_seconds:g} s after its start")]
        if verify.how == "boot"
        else []
    )


def _make_event(backup: Item, reason: str, message: str, type_: Literal["Normal", "Warning"] = "Normal") -> Event:
    return Event(type_, reason, message, backup.envelope.ref, SOURCE)
