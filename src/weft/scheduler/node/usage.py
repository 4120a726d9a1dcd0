"""The usage of nodes: reads it from their leases just before it is needed, and puts it into the snapshot.

Leases are read only where a placement policy ranks by usage, or somebody asks, and at most every few seconds. A node whose
heartbeat is old, or has no usage, counts with what is allocated there.
"""

from __future__ import annotations

import math

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.view import View
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, AllocationSpec
from weft.kinds.node import NODES_BY_UID
from weft.kinds.placement_policy import PlacementPolicySpec
from weft.objects.errors import StoreUnavailable
from weft.protocol.heartbeat import LEASE_PREFIX, LEASE_SECONDS, Digest, add_up, read_digest
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.table.usage import Measured

REFRESH_EVERY_SECONDS = 2.0
STALE_SECONDS = 25.0  # three heartbeats


class NodeUsage:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._refreshed_at = -math.inf
        self._digests: dict[str, bytes] = {}  # by node uid: those in the snapshot

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
            snapshot.put_use(uid, None)
        for uid, written in digests.items():
            if self._digests.get(uid) != written and view.find(NODES_BY_UID, uid):
                self._digests[uid] = written
                digest = read_digest(written)
                measured = digest is not None and digest.measured
                snapshot.put_use(uid, read_use(view, uid, digest) if digest is not None and measured else None)


def ranks_by_usage(view: View) -> bool:
    """Whether any placement policy ranks by usage."""
    policies = view.of_kind("placementpolicy").values()
    return any(item.spec(PlacementPolicySpec).basis == "used" for item in policies)


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
