"""Records how much of each quota its project uses, and warns of what is beyond its soft limits.

Reads quotas, what counts in them, and images; writes quota.status and the condition WithinSoftLimits. Woken by any of those.
Nothing is decided on this status: who adds something counts for himself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.quotas import ProjectQuota, count_item, read_quota
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.image import IMAGE, ImageStatus
from weft.kinds.quota import (
    MOST_SHOWN_USERS,
    PROJECT,
    QUOTA,
    Limits,
    QuotaStatus,
    describe_excess,
    find_over,
    quota_key,
)
from weft.kinds.registry import COUNTED
from weft.objects.envelope import Condition, merge_part, set_condition

SOURCE = "quotas"
WRITE_EVERY_SECONDS = 0.5


class Quotas:
    name = "quotas"
    kinds = (QUOTA.name, IMAGE.name, *(kind.name for kind in COUNTED))

    def __init__(self) -> None:
        self._written: dict[str, float] = {}  # by key: when last

    def route(self, view: View, change: Changed) -> Iterable[str]:
        key = quota_key(change.item.envelope.project)
        if change.kind == QUOTA.name:
            if change.new is None:
                self._written.pop(key, None)
            return (key,)
        if change.kind == IMAGE.name:  # other projects may count it too
            return view.of_kind(QUOTA.name) if has_changed(change, _size_of) else ()
        return (key,) if view.get(key) is not None and has_changed(change, count_item) else ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            wait = self._written.get(key, 0.0) + WRITE_EVERY_SECONDS - now
            item = view.get(key)
            if 0 < wait <= WRITE_EVERY_SECONDS:
                plan.later[key] = wait
            elif item is not None and (quota := read_quota(view, item.envelope.project)) is not None:
                commit = plan_status(quota, now)
                if commit is not None:
                    self._written[key] = now
                    plan.commits.append(commit)
        return plan


def plan_status(quota: ProjectQuota, now: float) -> Commit | None:
    """Write the quota's status and condition if they change."""
    item, former = quota.item, quota.item.status(QuotaStatus)
    used = {account: {name: n for name, n in quota.used[account].items() if n} for account in sorted(quota.used)}
    status = QuotaStatus(used=used.pop(PROJECT))
    if quota.limits.limits_users:
        status.used_by_user = dict([one for one in used.items() if one[1]][:MOST_SHOWN_USERS])
    envelope = edit(item)
    over = [
        excess
        for account in sorted(quota.used)
        for excess in find_over(_find_soft(quota, account), quota.used[account], account)
    ]
    message = describe_excess(item.envelope.project, over)
    state = ("False", "softLimitExceeded", message) if over else ("True", "", "")
    changed = set_condition(envelope, Condition("WithinSoftLimits", *state, now, item.envelope.generation))  # type: ignore[arg-type]
    if not changed and status == former:
        return None
    envelope.status = merge_part(envelope.status, status)
    before = item.envelope.condition("WithinSoftLimits")
    warns = bool(over) and (before is None or before.status != "False")
    events = [Event("Warning", "SoftLimitExceeded", message, item.envelope.ref, SOURCE)] if warns else []
    return Commit(item.key, [put(envelope)], [unchanged(item)], events)


def _find_soft(quota: ProjectQuota, account: str) -> Limits:
    return (quota.limits.limits_of(account) if account else quota.limits).soft


def _size_of(image: Item) -> object:
    return image.status(ImageStatus).virtual_size
