"""Outlook of the guests of a silent node: what keeps one from going on elsewhere, and when it does. Pure.

For the controller that frees them, and for all that people read of it.
"""

from __future__ import annotations

from weft.controllers.loss.source import LossSource, find_source
from weft.failover.timing import NODES, stretch
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import AllocationReport, AllocationSpec, ends_if_lost, is_held, is_restoring
from weft.kinds.fields.lease import AllocatedLease
from weft.kinds.node import NodeReport, NodeSpec, NodeStatus, find_pause_end
from weft.kinds.parts.node.loss import ASKS_FIRST, MASS_LOSS
from weft.kinds.parts.workload import WORKLOADS_BY_UID
from weft.objects.quantity import format_time
from weft.protocol.heartbeat import LEASE_SECONDS

PROMISE_SECONDS = NODES.promise  # after a node was heard last, a guest that its guard holds has ended there


def find_way(view: View, node: Item, place: Item) -> LossSource | str:
    """Find the source of a guest once it has certainly ended on its silent ``node``; or what keeps it from going on elsewhere."""
    spec, report = place.spec(AllocationSpec), place.report(AllocationReport)
    workload = next(iter(view.find(WORKLOADS_BY_UID, spec.workload.uid)), None)
    if not ends_if_lost(spec):
        return "its on_node_loss is wait"
    if workload is None or (place.deleting and not workload.deleting):
        return "it is being deleted"
    if spec.role != "active" or spec.migration is not None or spec.storage is not None:
        return "it migrates, or a disk of it does"
    if ASKS_FIRST not in node.report(NodeReport).capabilities:
        return "the agent of its node is older than this"
    if workload.deleting:
        return LossSource()  # it goes on nowhere
    if report.ended:
        return "it has ended"
    if spec.slot is not None or _is_promised(spec.lease):
        return "its place is promised to it on that node"
    if spec.lease is not None and spec.lease.suspension is not None:
        return "it is suspended there for another workload"
    if is_restoring(spec, report):
        return "it goes back to a snapshot"
    if getattr(spec_of(workload), "node", None) == node.envelope.name:
        return "its spec names that node"
    way = find_source(view, node, place, workload)
    if spec.snapshots and isinstance(way, LossSource) and way.point is None:
        return "a snapshot of it is in hand"
    return way


def _is_promised(lease: AllocatedLease | None) -> bool:
    """Whether a lease has more than a turn in the queue, which it gets again elsewhere: an end, or a place immediately or never."""
    return lease is not None and (lease.mode != "best-effort" or lease.end is not None)


def describe_outlook(view: View, node: Item, place: Item) -> str:
    """Describe what becomes of a guest of a silent node that isn't Autonomous, in one clause."""
    spec, way, name = place.spec(AllocationSpec), find_way(view, node, place), node.envelope.name
    if any(one.deleting for one in view.find(WORKLOADS_BY_UID, spec.workload.uid)):
        return _describe_deletion(node, place, way)
    if not ends_if_lost(spec):
        return "the workload may still run there; waiting for the node"
    if isinstance(way, str):
        return f"it waits for the node: {way}"
    gathered = node.envelope.condition("GuestsGoOn")
    if gathered is not None and gathered.reason == MASS_LOSS:
        return f"it waits, since many nodes are silent together; if this one is off: weft node confirm-off {name}"
    if not is_held(spec, place.report(AllocationReport)):
        return f"it restarts elsewhere{way.said} once the node is known to be off: weft node confirm-off {name}"
    at = find_promise_end(node)
    return f"it restarts elsewhere{way.said} at {format_time(at, seconds=True)} if the node isn't heard of before"


def _describe_deletion(node: Item, place: Item, way: LossSource | str) -> str:
    """The same of a guest that is being deleted: then nobody waits for what it has there."""
    gathered, held = (
        node.envelope.condition("GuestsGoOn"),
        is_held(place.spec(AllocationSpec), place.report(AllocationReport)),
    )
    if isinstance(way, str) or not held or (gathered is not None and gathered.reason == MASS_LOSS):
        return "the workload is removed there when the node returns"
    at = format_time(find_promise_end(node), seconds=True)
    return f"the workload is gone at {at} if the node isn't heard of before"


def find_promise_end(node: Item) -> float:
    """When the guests that a silent node's guard holds have ended there, as far as its status shows (seconds since 1970)."""
    status = node.status(NodeStatus)
    autonomy = node.spec(NodeSpec).autonomy_seconds
    at = (status.lost_at or status.since) + PROMISE_SECONDS - LEASE_SECONDS + stretch(autonomy)
    return max(at, find_pause_end(node) + PROMISE_SECONDS)
