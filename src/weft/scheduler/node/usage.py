"""The usage of nodes, and who talks to whom: reads both from their leases just before they are needed, and puts them into the
snapshot.

Leases are read only where a placement policy ranks by usage, or somebody asks, and at most every few seconds. A node whose
heartbeat is old, or has no usage, counts with what is allocated there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.view import View
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, ALLOCATIONS_BY_WORKLOAD, AllocationSpec
from weft.kinds.endpoint import EndpointSpec
from weft.kinds.fields.affinity import TALKERS
from weft.kinds.node import NODES_BY_UID
from weft.kinds.parts.workload import NEAR_STRATEGY, WORKLOADS_BY_NEAR, WORKLOADS_BY_UID
from weft.kinds.placement_policy import PlacementPolicySpec
from weft.objects.errors import StoreUnavailable
from weft.objects.identity import object_key
from weft.protocol.heartbeat import DEAD_LOSS, LEASE_PREFIX, LEASE_SECONDS, MOST_TALKERS, Digest, add_up, read_digest
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.table.talkers import Talkers, Whereabouts
from weft.scheduler.table.usage import Measured

REFRESH_EVERY_SECONDS = 2.0
STALE_SECONDS = 25.0  # three heartbeats
PRUNE_SECONDS = 600.0
MOST_NAME = 100  # characters of an endpoint's name


class NodeUsage:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._refreshed_at = -math.inf
        self._prune_at = -math.inf
        self._digests: dict[str, bytes] = {}  # by node uid: those in the snapshot
        self._losses: dict[str, dict[str, float]] = {}  # by node uid, of its paths to peers by their uids

    async def refresh(self, view: View, snapshot: Snapshot) -> None:
        """Bring the snapshot up to date, unless that was done just now."""
        now = self._clock.elapsed()
        if now - self._refreshed_at < REFRESH_EVERY_SECONDS:
            return
        self._refreshed_at = now
        try:
            leases = await self._store.leases(LEASE_PREFIX, digests=True)
        except StoreUnavailable:
            leases = []  # nothing is known of any of them
        digests = {
            lease.name.removeprefix(LEASE_PREFIX): lease.digest
            for lease in leases
            if lease.digest and LEASE_SECONDS - lease.remaining_seconds <= STALE_SECONDS
        }
        for uid in self._digests.keys() - digests.keys():
            del self._digests[uid]
            self._losses.pop(uid, None)
            snapshot.put_use(uid, None)
        for uid, written in digests.items():
            if self._digests.get(uid) != written and view.find(NODES_BY_UID, uid):
                self._digests[uid] = written
                digest = read_digest(written)
                self._losses[uid] = (
                    {peer: path.loss for peer, path in digest.paths.items()} if digest is not None else {}
                )
                if digest is not None:
                    put_talkers(view, snapshot.talkers, uid, digest)
                measured = digest is not None and digest.measured
                snapshot.put_use(uid, read_use(view, uid, digest) if digest is not None and measured else None)
        snapshot.unreachable = find_unreachable(self._losses)
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_SECONDS
            snapshot.talkers.prune(lambda uid: view.count(WORKLOADS_BY_UID, uid) > 0)


def ranks_by_usage(view: View, strategy: str = "") -> bool:
    """Whether any placement policy ranks by usage, or anything is placed by what it talks to; ``strategy`` is the default one."""
    if view.count(WORKLOADS_BY_NEAR, TALKERS) or NEAR_STRATEGY in strategy:
        return True
    specs = (item.spec(PlacementPolicySpec) for item in view.of_kind("placementpolicy").values())
    return any(spec.basis == "used" or NEAR_STRATEGY in spec.strategy + spec.serverless for spec in specs)


def find_unreachable(losses: Mapping[str, Mapping[str, float]]) -> frozenset[str]:
    """The nodes from which none of the peers that probe them gets an answer; ``losses`` by node and peer, below 0: unknown."""
    heard: dict[str, bool] = {}
    for peers in losses.values():
        for peer, loss in peers.items():
            if loss >= 0.0:
                heard[peer] = heard.get(peer, False) or loss <= DEAD_LOSS
    return frozenset(uid for uid, answers in heard.items() if not answers)


def put_talkers(view: View, talkers: Talkers, node_uid: str, digest: Digest) -> None:
    """Note whom the workloads on a node talk to. It is believed of those that are there, and of peers that have the endpoints."""
    for item in view.find(ALLOCATIONS_BY_NODE, node_uid) if digest.talkers else ():
        uid, rates = item.spec(AllocationSpec).workload.uid, dict[str, float]()
        if uid not in digest.talkers:
            continue
        for endpoint, rate in digest.talkers[uid][:MOST_TALKERS]:
            found = view.get(object_key("endpoint", None, endpoint)) if len(endpoint) <= MOST_NAME else None
            if found is not None and 0.0 < rate < math.inf:
                peer = found.spec(EndpointSpec).workload.uid
                rates[peer] = rates.get(peer, 0.0) + rate
        talkers.put(uid, rates)


def find_whereabouts(view: View, uid: str) -> Whereabouts | None:
    """A workload, and the node on which it is to run; None if it is gone."""
    found = view.find(WORKLOADS_BY_UID, uid)
    if not found:
        return None
    envelope = found[0].envelope
    specs = [item.spec(AllocationSpec) for item in view.find(ALLOCATIONS_BY_WORKLOAD, uid)]
    node = next((spec.node_uid for spec in specs if spec.role == "active" and spec.desired == "run"), None)
    return Whereabouts(envelope.kind, envelope.project, envelope.name, node)


def read_use(view: View, node_uid: str, digest: Digest) -> Measured:
    """The sum of a digest: all settled guests, and what belongs to no allocation."""
    settled = {uid: use for uid, use in digest.guests.items() if use.settled}
    covers = frozenset(
        item.key
        for item in view.find(ALLOCATIONS_BY_NODE, node_uid)
        if (spec := item.spec(AllocationSpec)).role == "active" and spec.workload.uid in settled
    )
    sum_ = add_up((*settled.values(), digest.other))
    return Measured((max(0, sum_.cpu), max(0, sum_.memory), max(0, sum_.disk)), covers)
