"""Says which snapshots a node keeps that no object explains, as after a restore of an older store. They stay where they are.

Reads nodes and snapshots; writes the condition Snapshots of nodes. Woken by either."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.node import NODES_BY_SNAPSHOT, NodeReport
from weft.kinds.snapshot import SNAPSHOTS_BY_UID
from weft.objects.envelope import Condition, set_condition

SOURCE = "snapshots"
_SHOWN = 5


class UnexplainedSnapshots:
    name = "unexplained snapshots"
    kinds = ("node", "snapshot")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "node":
                if has_changed(change, lambda item: item.report(NodeReport).snapshots):
                    return (change.key,)
            case "snapshot":
                if has_changed(change, lambda item: item.uid):
                    items = [item for item in (change.old, change.new) if item is not None]
                    return [node.key for item in items for node in view.find(NODES_BY_SNAPSHOT, item.uid)]
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        nodes = [node for key in keys if (node := view.get(key)) is not None]
        return Plan([commit for node in nodes if (commit := plan_node(view, node, now)) is not None])


def plan_node(view: View, node: Item, now: float) -> Commit | None:
    """Say which snapshots a node keeps that no object explains, as after a restore of an older store. They stay."""
    uids = [one.uid for one in node.report(NodeReport).snapshots if not view.find(SNAPSHOTS_BY_UID, one.uid)]
    former = node.envelope.condition("Snapshots")
    if not uids and former is None:
        return None
    condition = Condition("Snapshots", "True", "Explained", "", now, node.envelope.generation)
    if uids:
        shown = ", ".join(sorted(uids)[:_SHOWN]) + (f" and {len(uids) - _SHOWN} more" if len(uids) > _SHOWN else "")
        what = "a snapshot" if len(uids) == 1 else f"{len(uids)} snapshots"
        message = f"keeps {what} without an object, which weft never removes: {shown}"
        condition = Condition("Snapshots", "False", "Unexplained", message, now, node.envelope.generation)
    envelope = edit(node)
    if not set_condition(envelope, condition):
        return None
    events = [Event("Warning", "UnexplainedSnapshots", condition.message, node.envelope.ref, SOURCE)] if uids else []
    return Commit(node.key, [put(envelope)], [unchanged(node)], events)
