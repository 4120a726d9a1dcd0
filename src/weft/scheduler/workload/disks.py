"""Additional needs of a workload from its node's own pool, and from other pools. Pure; sizes in bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from weft.contracts.policy import DiskAsk
from weft.informer.pool.claims import name_root, name_volume
from weft.informer.view import Item, View
from weft.kinds.allocation import (
    ALLOCATIONS_BY_WORKLOAD,
    LOCAL,
    LOST_BY_WORKLOAD,
    AllocationReport,
    AllocationSpec,
    Resources,
    has_begun,
    has_ended_for_good,
)
from weft.kinds.node import NODES_BY_VOLUME, NodeReport, pool_id
from weft.kinds.pool import POOLS_BEYOND_ALARM
from weft.kinds.record import Needs
from weft.kinds.volume import VolumeSpec, VolumeStatus, pool_of


class DiskNeeds(msgspec.Struct, frozen=True):
    own: int = 0  # of the node's own pool
    of_volumes: int = 0  # how much of that volumes take
    asks: tuple[DiskAsk, ...] = ()  # of other pools


class LostDisk(NamedTuple):
    """The root disk of a lost allocation."""

    uid: str  # the allocation's
    node: str
    node_uid: str
    pool: str
    pool_id: str
    has_begun: bool  # it has what it began from


def list_lost_disks(view: View, workload: Item) -> list[LostDisk]:
    """The root disks of its lost allocations that are in a pool which other nodes share, newest first."""
    found = [(item.spec(AllocationSpec), item) for item in view.find(LOST_BY_WORKLOAD, workload.uid)]
    found.sort(key=lambda pair: -pair[0].incarnation)
    return [
        LostDisk(
            *(item.uid, spec.node, spec.node_uid, spec.pool, spec.pool_id), has_begun(item.report(AllocationReport))
        )
        for spec, item in found
        if spec.pool != LOCAL and spec.pool_id == found[0][0].pool_id
    ]


def read_needs(
    view: View, workload: Item, ask: Needs, resources: Resources, volumes: Sequence[Item], used: Collection[str]
) -> DiskNeeds:
    """Needs of a workload without a place. A volume that is ``used`` keeps its place: it needs only what it has grown by."""
    of_volumes, asks = 0, list[DiskAsk]()
    if ask.pool != LOCAL:
        asks.append(_ask_root(view, workload, ask.pool, resources.disk))
    for item in volumes:
        spec, status = item.spec(VolumeSpec), item.status(VolumeStatus)
        held = (status.size or spec.size) if item.uid in used else 0
        if (pool := pool_of(spec, status)) == LOCAL:
            of_volumes += max(0, spec.size - held)
        elif spec.size > held:
            at = find_storage(view, item) if held else ""
            asks.append(DiskAsk(pool, spec.size, name_volume(item.uid), at, held))
    own = resources.disk if ask.pool == LOCAL else 0
    return DiskNeeds(own + of_volumes, of_volumes, tuple(one for one in asks if one.size))


def read_carried(spec: AllocationSpec, resources: Resources) -> DiskNeeds:
    """Needs of an allocation on another node: the data in a pool that both have stays there."""
    of_volumes = sum(volume.size for volume in spec.volumes if volume.pool == LOCAL)
    asks = [
        DiskAsk(one.pool, one.size, name_volume(one.uid), one.pool_id, one.size)
        for one in spec.volumes
        if one.pool != LOCAL
    ]
    own = resources.disk if spec.pool == LOCAL else 0
    if spec.pool != LOCAL and resources.disk:
        root = name_root(spec.workload.uid)
        asks.append(DiskAsk(spec.pool, resources.disk, root, spec.pool_id, resources.disk))
    return DiskNeeds(own + of_volumes, of_volumes, tuple(asks))


def find_alarmed_pools(view: View, pools: Sequence[str]) -> tuple[str, ...]:
    """Those of the pools, by name, that some node has beyond their alarm."""
    return tuple(pool for pool in pools if view.count(POOLS_BEYOND_ALARM, pool))


def is_used(view: View, volume: Item) -> bool:
    """Whether it has its place in a pool. A restored store may be older than its first use."""
    return volume.status(VolumeStatus).node_uid is not None or bool(view.count(NODES_BY_VOLUME, volume.uid))


def find_storage(view: View, volume: Item) -> str:
    """The id of the storage that a volume's pool is; empty if it was never used, or nobody knows."""
    spec, status = volume.spec(VolumeSpec), volume.status(VolumeStatus)
    if status.pool_id:
        return status.pool_id
    name = pool_of(spec, status)
    return next((pool_id(node.report(NodeReport), name) for node in view.find(NODES_BY_VOLUME, volume.uid)), "")


def _ask_root(view: View, workload: Item, pool: str, size: int) -> DiskAsk:
    """A root disk in a pool: a new one, or the one that an allocation of the workload, also a lost one, still has."""
    for item in (*view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid), *view.find(LOST_BY_WORKLOAD, workload.uid)):
        spec = item.spec(AllocationSpec)
        if spec.pool == pool and not has_ended_for_good(spec, item.report(AllocationReport)):
            return DiskAsk(pool, size, name_root(workload.uid), spec.pool_id, spec.resources.disk)
    return DiskAsk(pool, size)
