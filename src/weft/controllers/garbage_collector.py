"""Removes objects whose owner is gone (a workload's endpoints, published ports, decision and profile, a service's endpoint and
published ports, a function's versions, a user's or
linked cluster's tokens), old recommendations and reports, and, later, Migrations and Conversions
that have ended.

Deleting an owner removes what it owns in the same commit; this controller is for leftovers. It never removes allocations: those
stand for guests, and only a node's report removes one. Woken by owned objects and by owners that go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.store import Absent, Precondition
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, delete, edit, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.endpoint import ENDPOINTS_BY_WORKLOAD
from weft.kinds.function_version import VERSIONS_BY_FUNCTION
from weft.kinds.migration import KEPT_OF_ONE
from weft.kinds.migration import KEPT_SECONDS as KEPT_PAST_SECONDS
from weft.kinds.profile import WORKLOAD_PROFILE
from weft.kinds.published_port import PUBLISHED_PORTS_BY_WORKLOAD
from weft.kinds.recommendation import KEPT_SECONDS
from weft.kinds.record import History
from weft.kinds.registry import KINDS, WORKLOADS, is_workload
from weft.kinds.token import TOKENS_BY_USER
from weft.objects.identity import object_key

OWNED = tuple(kind.name for kind in KINDS if kind.lifetime.goes_with_owner)
OWNERS = (*WORKLOADS, "function", "user", "service", "cluster")
PASSING = tuple(kind.name for kind in KINDS if kind.lifetime.ephemeral)
HISTORY = {
    kind.name: kind.lifetime.history for kind in KINDS if kind.lifetime.history is not None
}  # kept for a while after its end


class Garbage:
    name = "garbage"
    kinds = (*OWNERS, *OWNED, *PASSING, *HISTORY)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        history = HISTORY.get(change.kind)
        if history is not None:
            return (change.key,) if change.new is not None and history.has_ended(change.new) else ()
        if not has_changed(change, lambda item: item.uid):
            return ()
        if change.kind not in OWNERS:
            return (change.key,) if change.new is not None else ()
        if change.old is None:
            return ()
        if change.kind in ("user", "cluster"):
            return [item.key for item in view.find(TOKENS_BY_USER, change.old.uid)]
        belongings = [
            *view.find(ENDPOINTS_BY_WORKLOAD, change.old.uid),
            *view.find(PUBLISHED_PORTS_BY_WORKLOAD, change.old.uid),
        ]
        if change.kind == "service":
            return [item.key for item in belongings]
        name = f"{change.kind}.{change.old.envelope.name}"
        profile = object_key(WORKLOAD_PROFILE.name, change.old.envelope.project, name)
        if not is_workload(change.kind):
            return [profile, *(item.key for item in view.find(VERSIONS_BY_FUNCTION, change.old.uid))]
        decision = object_key("decision", change.old.envelope.project, name)
        return [*(item.key for item in belongings), decision, profile]

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for item in [item for key in keys if (item := view.get(key)) is not None]:
            history = HISTORY.get(item.envelope.kind)
            if history is not None:
                plan.later |= {item.key: left} if (left := _time_left(history, item, now)) > 0 else {}
                plan.commits += plan_past(view, history, item, now)
            elif item.envelope.kind not in PASSING:
                commit = plan_item(view, item)
                plan.commits += [commit] if commit is not None else []
            elif (left := item.envelope.created_at + KEPT_SECONDS - now) > 0:
                plan.later[item.key] = left
            else:
                plan.commits.append(Commit(item.key, [delete(item)], [unchanged(item)]))
        return plan


def plan_past(view: View, history: History, item: Item, now: float) -> list[Commit]:
    """Delete objects that ended long ago, or before many others of the same workload."""
    if not history.has_ended(item):
        return []
    past = [other for other in view.find(history.index, history.word(item)) if history.has_ended(other)]
    past.sort(key=lambda other: (-(history.ended_at(other) or 0.0), other.key))
    old = [*past[KEPT_OF_ONE:], *(one for one in past[:KEPT_OF_ONE] if _time_left(history, one, now) <= 0)]
    commits = []
    for one in (one for one in old if not one.deleting):
        envelope = edit(one)
        envelope.deleting_since = now
        commits.append(Commit(one.key, [put(envelope)], [unchanged(one)]))
    return commits


def _time_left(history: History, item: Item, now: float) -> float:
    return (history.ended_at(item) or now) + KEPT_PAST_SECONDS - now


def plan_item(view: View, item: Item) -> Commit | None:
    """Remove ``item`` if its owner is gone for good: absent, or another object under the same name."""
    ref = item.envelope.owner
    if ref is None or ref.kind not in OWNERS:
        return None
    key = object_key(ref.kind, ref.project, ref.name)
    owner = view.get(key)
    if owner is not None and owner.uid == ref.uid:
        return None
    proof: Precondition = Absent(key) if owner is None else unchanged(owner)
    return Commit(item.key, [delete(item)], [unchanged(item), proof])
