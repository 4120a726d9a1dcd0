"""The samples of one moment: of what nodes have, hold and use, and of what each guest uses. Pure.

Names follow Prometheus' conventions: base units, and the unit in the name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from weft.contracts.store import Lease
from weft.controllers.metrics.services import list_requests
from weft.controllers.metrics.storage import list_osds, list_storage
from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationReport, AllocationSpec, has_ended_for_good
from weft.kinds.cluster import CLUSTER, ClusterStatus
from weft.kinds.node import NODES_BY_UID, NodeReport, NodeSpec, NodeStatus, is_quarantined
from weft.kinds.parts.node.loss import MASS_LOSS
from weft.kinds.replication import ENDED, REPLICATION, ReplicationSpec, ReplicationStatus
from weft.protocol.heartbeat import (
    CLOCK,
    LEASE_PREFIX,
    LEASE_SECONDS,
    MOST_COUNTED,
    MOST_PATHS,
    Digest,
    read_digest,
    total,
)
from weft.telemetry.metrics.devices import MOST, list_devices, list_node, list_pools
from weft.telemetry.metrics.sample import Sample

Labels = tuple[tuple[str, str], ...]
MOST_TRIP_MS = 60_000.0  # no node is farther away


def list_samples(view: View, leases: Sequence[Lease], sent: dict[str, int], now: float) -> Iterator[Sample]:
    """Yield the samples that the nodes' heartbeats brought since the moments (unix ms, by node uid) in ``sent``, which it brings up
    to date.
    """
    at = int(now * 1000)
    ready = set()
    for lease in leases:
        uid = lease.name.removeprefix(LEASE_PREFIX)
        node = next(iter(view.find(NODES_BY_UID, uid)), None)
        if node is None:
            continue
        ready.add(uid)
        measured = at - int(max(0.0, LEASE_SECONDS - lease.remaining_seconds) * 1000)
        if measured <= sent.get(uid, 0):
            continue
        sent[uid] = measured
        yield from _list_of_node(view, node, read_digest(lease.digest), measured)
    for node in view.of_kind("node").values():
        labels, phase = (("node", node.envelope.name),), node.status(NodeStatus).phase
        if node.uid in ready or phase != "Joining":  # one that never came isn't silent
            yield Sample("weft_node_up", labels, at, float(node.uid in ready))
            if node.spec(NodeSpec).autonomy_seconds:
                yield Sample("weft_node_autonomous", labels, at, float(phase == "Autonomous"))
            if node.status(NodeStatus).quarantine is not None:
                yield Sample("weft_node_quarantined", labels, at, float(is_quarantined(node.status(NodeStatus))))
            if (goes_on := node.envelope.condition("GuestsGoOn")) is not None:
                yield Sample("weft_node_guests_waiting", labels, at, float(goes_on.status == "False"))
                yield Sample("weft_node_loss_held", labels, at, float(goes_on.reason == MASS_LOSS))
    yield from list_storage(view, at)
    for cluster in view.of_kind(CLUSTER.name).values():
        up = cluster.status(ClusterStatus).phase == "Linked"
        yield Sample("weft_cluster_link_up", (("cluster", cluster.envelope.name),), at, float(up))
    for replication in view.of_kind(REPLICATION.name).values():
        yield from _list_of_replication(replication, at)
    for uid in sent.keys() - ready:
        del sent[uid]


def _list_of_replication(replication: Item, at: int) -> Iterator[Sample]:
    """None without a point, as its age is unknown, nor once no point is to come: what the replica lacks then is nothing."""
    spec, status = replication.spec(ReplicationSpec), replication.status(ReplicationStatus)
    point = status.point
    if point is None or spec.paused or replication.deleting or status.phase in ENDED:
        return
    envelope = replication.envelope
    labels = (("project", envelope.project or ""), ("name", envelope.name), ("cluster", spec.cluster))
    yield Sample("weft_replication_lag_seconds", labels, at, max(0.0, at / 1000 - point.begun_at))
    yield Sample("weft_replication_rpo_seconds", labels, at, spec.rpo)


def _list_of_node(view: View, node: Item, digest: Digest | None, at: int) -> Iterator[Sample]:
    name = node.envelope.name
    labels: Labels = (("node", name),)
    report, status = node.report(NodeReport), node.status(NodeStatus)
    yield Sample("weft_node_cpu_cores", labels, at, report.cpu)
    yield Sample("weft_node_memory_bytes", labels, at, report.memory)
    yield Sample("weft_node_disk_bytes", labels, at, report.disk)
    yield Sample("weft_node_cpu_allocated_cores", labels, at, status.allocated_cpu)
    yield Sample("weft_node_memory_allocated_bytes", labels, at, status.allocated_memory)
    yield Sample("weft_node_disk_allocated_bytes", labels, at, status.allocated_disk)
    yield Sample("weft_node_allocations", labels, at, status.allocations)
    if digest is None:
        return
    for state in ("busy", "idle", "ready"):
        value = getattr(digest.instances, state)
        yield Sample("weft_node_function_instances", (*labels, ("state", state)), at, value)
    for metric, named, value in list_node(labels, digest.node):
        yield Sample(metric, named, at, value)
    if CLOCK in digest.node and -MOST < digest.node[CLOCK] < MOST:
        yield Sample("weft_node_clock_offset_seconds", labels, at, digest.node[CLOCK] - at / 1000)
    for metric, named, value in list_pools(labels, report.pools):
        yield Sample(metric, named, at, value)
    yield from list_osds(view, name, report.pools, at)
    yield from _list_paths(view, node, digest, at)
    yield from _list_devices(view, node, digest, at)
    yield from list_requests(view, node, digest, at)
    if digest.measured:
        use = total(digest)
        yield Sample("weft_node_cpu_used_cores", labels, at, use.cpu / 1000)
        yield Sample("weft_node_memory_used_bytes", labels, at, use.memory)
        yield Sample("weft_node_disk_used_bytes", labels, at, use.disk)
        yield from _list_of_guests(view, node, digest, at)


def _list_paths(view: View, node: Item, digest: Digest, at: int) -> Iterator[Sample]:
    for uid, path in itertools.islice(digest.paths.items(), MOST_PATHS):
        peer = next(iter(view.find(NODES_BY_UID, uid)), None)
        if peer is None or uid == node.uid:  # a hostile node may name anything
            continue
        labels = (("node", node.envelope.name), ("peer", peer.envelope.name))
        if 0.0 <= path.loss <= 1.0:
            yield Sample("weft_link_loss_ratio", labels, at, path.loss)
        if 0.0 <= path.latency_ms < MOST_TRIP_MS:
            yield Sample("weft_link_round_trip_seconds", labels, at, path.latency_ms / 1000)


def _list_devices(view: View, node: Item, digest: Digest, at: int) -> Iterator[Sample]:
    for uid, counts in itertools.islice(digest.devices.items(), MOST_COUNTED):
        if (spec := _find_placed(view, node, uid)) is not None:
            for metric, labels, value in list_devices(_label(spec, node), counts):
                yield Sample(metric, labels, at, value)


def _label(spec: AllocationSpec, node: Item) -> Labels:
    workload = spec.workload
    return (
        ("project", workload.project or ""),
        ("kind", workload.kind),
        ("name", workload.name),
        ("node", node.envelope.name),
    )


def _list_of_guests(view: View, node: Item, digest: Digest, at: int) -> Iterator[Sample]:
    for uid, use in digest.guests.items():
        spec = _find_placed(view, node, uid)
        if spec is None:  # a hostile node may name any guest: what counts is what was placed there
            continue
        labels = _label(spec, node)
        yield Sample("weft_guest_cpu_cores", labels, at, use.cpu / 1000)
        yield Sample("weft_guest_memory_bytes", labels, at, use.memory)
        yield Sample("weft_guest_disk_bytes", labels, at, use.disk)
        yield Sample("weft_guest_cpu_requested_cores", labels, at, spec.resources.cpu)
        yield Sample("weft_guest_memory_requested_bytes", labels, at, spec.resources.memory)


def _find_placed(view: View, node: Item, workload_uid: str) -> AllocationSpec | None:
    """The workload's allocation on the node; None also for a task that has ended: what is left of it is its log."""
    for item in view.find(ALLOCATIONS_BY_WORKLOAD, workload_uid):
        spec = item.spec(AllocationSpec)
        if spec.node_uid == node.uid:
            return None if has_ended_for_good(spec, item.report(AllocationReport)) else spec
    return None
