"""Removes what belongs to a VM that is gone: endpoints, publications and decisions whose owner no longer exists; and what
told of a moment that is past: recommendations and reports.

Deletion takes the former away with their owner, in one commit; this is for what was left over all the same. Never
allocations: those stand for guests, and only a node's word removes one. Woken by owned objects and by VMs that go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.client.commit import Commit, delete, unchanged
from weft.client.indexes import ENDPOINTS_BY_WORKLOAD, PUBLICATIONS_BY_WORKLOAD
from weft.client.view import Changed, Item, View
from weft.contracts.store import Absent, Precondition
from weft.controllers.loop import Plan, moved
from weft.kinds.recommendation import KEPT_SECONDS
from weft.objects.identity import object_key

OWNED = ("endpoint", "publication", "decision")
PASSING = ("recommendation", "report")


class Garbage:
    name = "garbage"
    kinds = ("vm", *OWNED, *PASSING)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if not moved(change, lambda item: item.uid):
            return ()
        if change.kind != "vm":
            return (change.key,) if change.new is not None else ()
        if change.old is None:
            return ()
        belongings = [
            *view.find(ENDPOINTS_BY_WORKLOAD, change.old.uid),
            *view.find(PUBLICATIONS_BY_WORKLOAD, change.old.uid),
        ]
        decision = object_key("decision", change.old.envelope.project, f"vm.{change.old.envelope.name}")
        return [*(item.key for item in belongings), decision]

    async def observe(self) -> None:
        """The view has it all."""

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for item in [item for key in keys if (item := view.get(key)) is not None]:
            if item.envelope.kind not in PASSING:
                commit = plan_item(view, item)
                plan.commits += [commit] if commit is not None else []
            elif (left := item.envelope.created_at + KEPT_SECONDS - now) > 0:
                plan.later[item.key] = left
            else:
                plan.commits.append(Commit(item.key, [delete(item)], [unchanged(item)]))
        return plan


def plan_item(view: View, item: Item) -> Commit | None:
    """Remove ``item`` if its owner is gone for good: absent, or another object under the same name."""
    ref = item.envelope.owner
    if ref is None or ref.kind != "vm":
        return None
    key = object_key(ref.kind, ref.project, ref.name)
    owner = view.get(key)
    if owner is not None and owner.uid == ref.uid:
        return None
    proof: Precondition = Absent(key) if owner is None else unchanged(owner)
    return Commit(item.key, [delete(item)], [unchanged(item), proof])
