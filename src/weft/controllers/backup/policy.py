"""Makes the backups that policies ask for, when they are due, and deletes those that are kept long enough.

Reads policies, backups, VMs, volumes, containers, allocations, pools; makes Backups, has the newest booted in quiet hours, deletes
old ones that a policy made, writes backuppolicy.status. Woken by any of those, and by time. Which are kept: ``retention.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.controllers.backup.retention import MAKING, list_old, read_made
from weft.controllers.backup.subjects import has_data, list_subjects
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import AllocationSpec, list_disks
from weft.kinds.backup import (
    BACKUP,
    BACKUPS_BY_POLICY,
    PROJECT,
    BackupActions,
    BackupMarks,
    BackupSpec,
    BackupStatus,
    policy_key,
)
from weft.kinds.backup_policy import (
    POLICIES_BY_SUBJECT,
    BackupPolicySpec,
    BackupPolicyStatus,
    PolicySubject,
    find_due,
    is_quiet,
    name_schedule,
    read_keep,
)
from weft.kinds.fields.backup_verification import DAMAGED
from weft.kinds.fields.subject import split_subject
from weft.kinds.registry import BY_NAME
from weft.objects.envelope import Envelope
from weft.objects.identity import cut_name, new_uid, object_key

LONGEST_WAIT_SECONDS = 600.0  # a clock may be set
MOST_NAMED = 3


class BackupPolicies:
    name = "backup policies"
    kinds = ("backuppolicy", "backup", "vm", "volume", "container", "allocation", "pool")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "backuppolicy":
                return (change.key,)
            case "backup":
                if has_changed(change, _policy_relevant_state):
                    return [policy_key(change.item)] if change.item.marks(BackupMarks).policy else ()
            case "vm" | "volume" | "container":
                if has_changed(change, lambda item: (item.uid, item.deleting, has_data(item))):
                    policies = view.of_kind("backuppolicy").values()
                    of_project = [one for one in policies if one.envelope.project == change.item.envelope.project]
                    whole = [one.key for one in of_project if one.spec(BackupPolicySpec).whole_project]
                    return [*(item.key for item in view.find(POLICIES_BY_SUBJECT, change.key)), *whole]
            case "allocation":
                if has_changed(change, lambda item: (item.uid, list_disks(item.spec(AllocationSpec)))):
                    policies = view.of_kind("backuppolicy").values()
                    return [item.key for item in policies if item.spec(BackupPolicySpec).pool]
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            policy = view.get(key)
            if policy is None or policy.deleting:
                continue
            commit, wait = plan_policy(view, policy, now)
            plan.later[key] = wait
            if commit is not None:
                plan.commits.append(commit)
        return plan


def _policy_relevant_state(backup: Item) -> object:
    status = backup.status(BackupStatus)
    return backup.uid, backup.deleting, status.phase, status.verify.generation


def plan_policy(view: View, policy: Item, now: float) -> tuple[Commit | None, float]:
    """The commit that is due, and the seconds until the next look."""
    spec, status, draft = policy.spec(BackupPolicySpec), policy.status(BackupPolicyStatus), Draft()
    schedule = name_schedule(spec)
    before = {one.of: _find_last(one, spec, now) for one in status.subjects}
    subjects, left_out = list_subjects(view, policy)
    last, next_runs = {of: before[of] for of in subjects if of in before}, list[float]()
    own: dict[str, list[Item]] = {of: [] for of in subjects}
    for item in view.find(BACKUPS_BY_POLICY, policy.key):
        if not item.deleting:
            own.setdefault(item.spec(BackupSpec).of, []).append(item)
    for of, made in own.items():
        for item in list_old(map(read_made, made), spec, now):
            draft.change(item, deleting_since=now)
        kind, name = split_subject(of)
        place = policy.envelope.project if kind != PROJECT else None
        subject = view.get(object_key(kind, place, name)) if of in subjects else None
        if spec.paused or subject is None or subject.deleting:
            continue
        if spec.verify == "boot" and BY_NAME[kind].snapshots == "machine" and is_quiet(spec, now):
            _ask_boot(draft, made, spec, now)
        if of not in last and spec.schedule:
            last[of] = now  # it waits for its time
        due = find_due(spec, last[of], now) if of in last else now
        if due <= now:
            if any(item.status(BackupStatus).phase in MAKING for item in made):
                continue
            draft.make(_make(policy, spec, of, now))
            last[of] = now
            due = find_due(spec, now, now)
        next_runs.append(due)
    noted = [PolicySubject(of=of, last_run=last[of], schedule=schedule) for of in subjects if of in last]
    planned = msgspec.structs.replace(
        status,
        subjects=noted,
        next_run=min(next_runs, default=None),
        reason="encrypted" if left_out else "",
        message=_list_left_out(left_out),
    )
    if planned != status:
        draft.change(policy, status=planned)
    return draft.commit(policy.key), min([LONGEST_WAIT_SECONDS, *(due - now for due in next_runs)])


def _find_last(subject: PolicySubject, spec: BackupPolicySpec, now: float) -> float:
    """Time after which its next backup is due. Nothing was missed under a schedule before that was in force, and no time that lies
    ahead, since the clock was set back, keeps it from being due.
    """
    if spec.schedule and subject.schedule not in ("", name_schedule(spec)):
        return now
    return min(subject.last_run, now)


def _list_left_out(left_out: Sequence[str]) -> str:
    more = len(left_out) - MOST_NAMED
    return f"left out: {'; '.join(left_out[:MOST_NAMED])}{f'; and {more} more' if more > 0 else ''}" if left_out else ""


def _ask_boot(draft: Draft, made: Sequence[Item], spec: BackupPolicySpec, now: float) -> None:
    """Have the newest backup booted, once; one with a time ahead was made before the clock was set back."""
    ready = {
        item: item.status(BackupStatus).taken_at or 0.0 for item in made if item.status(BackupStatus).phase == "Ready"
    }
    newest = max(ready, key=lambda item: (ready[item] <= now, ready[item]), default=None)
    if newest is None:
        return
    asked, status = newest.actions(BackupActions), newest.status(BackupStatus)
    is_asked = status.verify.generation < asked.verify_generation
    if not is_asked and status.workload_spec and status.verify.how != "boot" and status.state != DAMAGED:
        boot = msgspec.structs.replace(
            asked,
            verify_generation=asked.verify_generation + 1,
            verify_how="boot",
            verify_check=spec.verify_check,
            verify_within=spec.verify_within,
        )
        draft.change(newest, actions=boot)


def _make(policy: Item, spec: BackupPolicySpec, of: str, now: float) -> Envelope:
    """A backup; its name has those of the policy and of what it is of."""
    uid, envelope = new_uid(), policy.envelope
    name = cut_name(f"{envelope.name}-{of.partition('/')[2]}", f"-{uid[:8]}")
    made = BackupSpec(of=of, to=spec.to, keep=read_keep(spec))
    asked = BackupActions(verify_generation=1 if spec.verify else 0)
    return BACKUP.make(
        *(name, made, now),
        uid=uid,
        project=envelope.project,
        creator=envelope.creator,
        actions=asked,
        marks=BackupMarks(policy=envelope.name),
    )
