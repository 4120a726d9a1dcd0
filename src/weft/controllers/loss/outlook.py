"""Outlook of the guests of a silent node: what keeps one from going on elsewhere, and when it does. Pure.

For the controller that frees them, and for all that people read of it.
"""

from __future__ import annotations

from weft.failover.timing import NODES, stretch
from weft.informer.view import Item, View
from weft.informer.workloads import record_of, spec_of
from weft.kinds.allocation import LOCAL, AllocationReport, AllocationSpec, ends_if_lost, is_held, is_restoring
from weft.kinds.node import NODES_BY_POOL, NodeReport, NodeSpec, NodeStatus, find_pause_end
from weft.kinds.parts.node.loss import ASKS_FIRST, MASS_LOSS
from weft.kinds.parts.workload import WORKLOADS_BY_UID
from weft.objects.quantity import format_time
from weft.protocol.heartbeat import LEASE_SECONDS

PROMISE_SECONDS = NODES.promise  # after a node was heard last, a guest that its guard holds has ended there


def find_bar(view: View, node: Item, place: Item) -> str:
    """Name what keeps a guest from going on elsewhere once it has certainly ended on its silent ``node``; empty if nothing does."""
    spec, report = place.spec(AllocationSpec), place.report(AllocationReport)
    workload = next(iter(view.find(WORKLOADS_BY_UID, spec.workload.uid)), None)
    if not ends_if_lost(spec):
        return "its on_node_loss is wait"
    if workload is None or workload.deleting or place.deleting:
        return "it is being deleted"
    if spec.role != "active" or spec.migration is not None or spec.storage is not None:
        return "it migrates, or a disk of it does"
    if ASKS_FIRST not in node.report(NodeReport).capabilities:
        return "the agent of its node is older than this"
    if report.ended:
        return "it has ended"
    if spec.slot is not None or spec.lease is not None:
        return "its place is promised to it on that node"
    if spec.snapshots or is_restoring(spec, report):
        return "a snapshot of it is in hand"
    if getattr(spec_of(workload), "node", None) == node.envelope.name:
        return "its spec names that node"
    needs = record_of(workload).needs(spec_of(workload))
    disks = {f"its volume {volume.name}": (volume.pool, volume.pool_id) for volume in spec.volumes}
    if needs.machine:
        disks["its root disk"] = spec.pool, spec.pool_id
        if needs.pool != spec.pool:
            return f"its root disk is in {spec.pool}, and its spec says {needs.pool}"
    for disk, (pool, storage) in disks.items():
        if pool == LOCAL or not storage:
            return f"{disk} is in {pool}, on that node"
        others = (one for one in view.find(NODES_BY_POOL, storage) if one.uid != node.uid)
        if not any(one.status(NodeStatus).phase == "Ready" for one in others):
            return f"{disk} is in {pool}, which no other node that is ready has"
    return ""


def describe_outlook(view: View, node: Item, place: Item) -> str:
    """Describe what becomes of a guest of a silent node that isn't Autonomous, in one clause."""
    spec, bar, name = place.spec(AllocationSpec), find_bar(view, node, place), node.envelope.name
    if not ends_if_lost(spec):
        return "the workload may still run there; waiting for the node"
    if bar:
        return f"it waits for the node: {bar}"
    gathered = node.envelope.condition("GuestsGoOn")
    if gathered is not None and gathered.reason == MASS_LOSS:
        return f"it waits, since many nodes are silent together; if this one is off: weft node confirm-off {name}"
    if not is_held(spec, place.report(AllocationReport)):
        return f"it restarts elsewhere once the node is known to be off: weft node confirm-off {name}"
    at = find_promise_end(node)
    return f"it restarts elsewhere at {format_time(at, seconds=True)} if the node isn't heard of before"


def find_promise_end(node: Item) -> float:
    """When the guests that a silent node's guard holds have ended there, as far as its status shows (seconds since 1970)."""
    status = node.status(NodeStatus)
    autonomy = node.spec(NodeSpec).autonomy_seconds
    at = (status.lost_at or status.since) + PROMISE_SECONDS - LEASE_SECONDS + stretch(autonomy)
    return max(at, find_pause_end(node) + PROMISE_SECONDS)
