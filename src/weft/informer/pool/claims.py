"""How much of each pool is promised, and to what: kept up to date by increments, the same in controllers and scheduler.

A claim is a disk in a pool. Several may hold it: a volume and the allocation that has it attached, both ends of a migration within
a shared pool. It counts once, with the largest size that one of them holds it by. Sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.informer.view import Changed, Item
from weft.kinds.allocation import LOCAL, ROOT, AllocationReport, AllocationSpec, has_ended_for_good
from weft.kinds.node import NodeReport, pool_id
from weft.kinds.pool import pool_key
from weft.kinds.volume import VolumeSpec, VolumeStatus, pool_of

Claim = tuple[str, str, int]  # what its pool is counted by (``pool_key``), the disk, bytes


class Claims:
    """``given`` is the sum of each pool's claims."""

    def __init__(self) -> None:
        self.given: dict[str, int] = {}
        self._held: dict[str, dict[str, list[int]]] = {}  # by pool and disk: the sizes that it is held by

    def hold(self, claims: Iterable[Claim]) -> None:
        for pool, disk, size in claims:
            sizes = self._held.setdefault(pool, {}).setdefault(disk, [])
            self.given[pool] = self.given.get(pool, 0) + max(0, size - max(sizes, default=0))
            sizes.append(size)

    def release(self, claims: Iterable[Claim]) -> None:
        """Release what was held."""
        for pool, disk, size in claims:
            sizes = self._held[pool][disk]
            sizes.remove(size)
            self.given[pool] -= max(0, size - max(sizes, default=0))
            if not sizes:
                del self._held[pool][disk]
            if not self._held[pool]:
                del self._held[pool], self.given[pool]

    def size(self, pool: str, disk: str) -> int:
        """How much of the pool the disk has; 0: nothing."""
        return max(self._held.get(pool, {}).get(disk, ()), default=0)


def name_root(workload_uid: str) -> str:
    """The root disk of a workload, as a claim has it."""
    return f"root {workload_uid}"


def name_volume(uid: str) -> str:
    return f"volume {uid}"


def list_claims(spec: AllocationSpec) -> tuple[Claim, ...]:
    """The disks of an allocation. One that is being relocated takes capacity of both pools."""
    node, disks = spec.node_uid, [(one.pool, one.pool_id, name_volume(one.uid), one.size) for one in spec.volumes]
    disks.append((spec.pool, spec.pool_id, name_root(spec.workload.uid), spec.resources.disk))
    if (to := spec.storage) is not None:
        relocated = name_root(spec.workload.uid) if to.disk == ROOT else name_volume(to.disk)
        disks += [(to.pool, to.pool_id, disk, size) for _, _, disk, size in disks if disk == relocated]
    claims = ((pool_key(pool, storage, node), disk, size) for pool, storage, disk, size in disks)
    return tuple(claim for claim in claims if claim[0] and claim[2] > 0)


def list_claims_of_volume(volume: Item) -> tuple[Claim, ...]:
    """A volume that has been used keeps its place, attached or not, in the size that placement has given it."""
    spec, status = volume.spec(VolumeSpec), volume.status(VolumeStatus)
    if status.node_uid is None:
        return ()
    key = pool_key(pool_of(spec, status), status.pool_id, status.node_uid)
    return ((key, name_volume(volume.uid), status.size or spec.size),) if key else ()


def list_claims_of_node(node: Item) -> tuple[Claim, ...]:
    """The snapshots that a node's pools keep."""
    report = node.report(NodeReport)
    if not report.snapshots:
        return ()
    own = ("", pool_id(report, LOCAL))
    sizes = {
        (node.uid if one.pool_id in own else one.pool_id, f"snapshot {one.uid}"): one.size for one in report.snapshots
    }
    return tuple((pool, disk, size) for (pool, disk), size in sizes.items() if size > 0)


def list_claims_of(item: Item | None) -> Sequence[Claim]:
    """The claims of an object of any of ``KINDS``."""
    if item is None:
        return ()
    match item.envelope.kind:
        case "allocation":
            spec = item.spec(AllocationSpec)
            return () if has_ended_for_good(spec, item.report(AllocationReport)) else list_claims(spec)
        case "volume":
            return list_claims_of_volume(item)
    return list_claims_of_node(item)


KINDS = ("allocation", "volume", "node")


def note_claims(claims: Claims, change: Changed) -> set[str]:
    """Count a change of an object of one of KINDS; returns the pools whose sum may have changed."""
    old, new = list_claims_of(change.old), list_claims_of(change.new)
    if old == new:
        return set()
    claims.hold(new)
    claims.release(old)
    return {claim[0] for claim in (*old, *new)}
