"""Deletes backups whose own time is over: those that people made with one, and those whose policy is gone.

Reads backups, policies; deletes backups. Woken by those, and by the time. A policy's own backups are its affair (``policy.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.controllers.backup.retention import MAKING, is_over, read_made
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.backup import (
    BACKUPS_BY_POLICY,
    BACKUPS_BY_SUBJECT,
    BackupMarks,
    BackupSpec,
    BackupStatus,
    policy_key,
    subject_key,
)

LONGEST_WAIT_SECONDS = 3600.0  # a clock may be set


class BackupExpiry:
    name = "backup expiry"
    kinds = ("backup", "backuppolicy")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "backuppolicy":
            if has_changed(change, lambda item: (item.uid, item.deleting)):
                return [item.key for item in view.find(BACKUPS_BY_POLICY, change.key)]
            return ()
        if has_changed(change, _expiry_relevant_state):
            return [item.key for item in view.find(BACKUPS_BY_SUBJECT, subject_key(change.item))]
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            backup = view.get(key)
            if backup is None or backup.deleting or not backup.spec(BackupSpec).keep or has_policy(view, backup):
                continue
            commit = plan_expiry(view, backup, now)
            if commit is not None:
                plan.commits.append(commit)
            elif backup.status(BackupStatus).phase not in MAKING:
                left = backup.envelope.created_at + backup.spec(BackupSpec).keep - now
                plan.later[key] = min(LONGEST_WAIT_SECONDS, left) if left > 0 else LONGEST_WAIT_SECONDS
        return plan


def plan_expiry(view: View, backup: Item, now: float) -> Commit | None:
    others = [item for item in view.find(BACKUPS_BY_SUBJECT, subject_key(backup)) if item.uid != backup.uid]
    if not is_over(read_made(backup), map(read_made, others), now):
        return None
    draft = Draft()
    draft.change(backup, deleting_since=now)
    return draft.commit(backup.key)


def has_policy(view: View, backup: Item) -> bool:
    """Whether a policy decides how long it is kept."""
    policy = view.get(policy_key(backup)) if backup.marks(BackupMarks).policy else None
    return policy is not None and not policy.deleting


def _expiry_relevant_state(backup: Item) -> object:
    spec, status = backup.spec(BackupSpec), backup.status(BackupStatus)
    return backup.uid, backup.deleting, spec.keep, spec.to, status.phase, status.state
