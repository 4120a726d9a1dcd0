"""Facts of one snapshot: its workload, the allocation that takes it, and the nodes that keep it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.controllers.allocation.active import active_allocation
from weft.informer.view import Item, View
from weft.kinds.allocation import (
    ALLOCATIONS_BY_VOLUME,
    ALLOCATIONS_BY_WORKLOAD,
    ROOT,
    AllocationReport,
    AllocationSpec,
    list_snapshots_to_take,
)
from weft.kinds.fields.allocated_snapshot import AllocatedSnapshot, GroupTurn, SnapshotReport
from weft.kinds.node import (
    NODES_BY_POOL,
    NODES_BY_SNAPSHOT,
    NODES_BY_UID,
    SILENT_PHASES,
    NodeReport,
    NodeSnapshot,
    NodeStatus,
)
from weft.kinds.snapshot import SnapshotDisk, SnapshotMarks, SnapshotSpec, SnapshotStatus, read_workload, workload_key


class KeptSnapshot(msgspec.Struct, frozen=True):
    """A node that lists the snapshot."""

    node: str
    node_uid: str
    snapshot: NodeSnapshot


class SnapshotFacts(msgspec.Struct, frozen=True):
    name: str
    uid: str
    deleting: bool
    spec: SnapshotSpec
    marks: SnapshotMarks
    status: SnapshotStatus
    what: str  # vm/web
    workload: Item | None = None  # that of its name; of its uid once it has one
    place: Item | None = None  # the workload's active allocation
    ordered: Item | None = None  # the allocation whose node is about to take it
    turn: GroupTurn = ""  # of that order, if it is a group's member
    turn_at: float = 0.0  # unix seconds: since when it is this turn
    created_at: float = 0.0  # unix seconds
    report: SnapshotReport | None = None  # of any of the workload's allocations
    kept: Sequence[KeptSnapshot] = ()
    unknown: bool = False  # a node that may have it hasn't reported since a restore of the store
    home_exists: bool = False  # the node where it lies is in the fabric
    home_reports: bool = False  # and Ready
    is_lost: bool = False  # no node sees the storage where it lies any more
    silent: str = ""  # the node of the workload, or of the order, that sends no heartbeat
    on_the_way: bool = False  # a copy of it may be on its way to another node or pool


def read_facts(view: View, snapshot: Item, silent: bool) -> SnapshotFacts:
    """``silent``: some nodes have not reported since a restore."""
    spec, status = snapshot.spec(SnapshotSpec), snapshot.status(SnapshotStatus)
    workload = view.get(workload_key(snapshot))
    if workload is not None and status.workload_uid not in ("", workload.uid):
        workload = None
    workload_uid = status.workload_uid or (workload.uid if workload is not None else "")
    places = view.find(ALLOCATIONS_BY_WORKLOAD, workload_uid) if workload_uid else ()
    homes: Sequence[Item] = view.find(NODES_BY_UID, status.node_uid) if status.node_uid else ()
    reports = [one for item in places for one in item.report(AllocationReport).snapshots if one.uid == snapshot.uid]
    ordered = next((item for item in places if any(one.uid == snapshot.uid for one in list_orders(item))), None)
    orders = list_orders(ordered) if ordered is not None else []
    order = next((one for one in orders if one.uid == snapshot.uid), None)
    place = active_allocation(view, workload_uid) if workload_uid else None
    return SnapshotFacts(
        name=snapshot.envelope.name,
        uid=snapshot.uid,
        deleting=snapshot.deleting,
        spec=spec,
        marks=snapshot.marks(SnapshotMarks),
        status=status,
        what="/".join(read_workload(spec)),
        workload=workload,
        place=place,
        ordered=ordered,
        turn=order.turn if order is not None else "",
        turn_at=order.turn_at if order is not None else 0.0,
        created_at=snapshot.envelope.created_at,
        report=next(iter(reports), None),
        kept=[
            KeptSnapshot(node.envelope.name, node.uid, one)
            for node in view.find(NODES_BY_SNAPSHOT, snapshot.uid)
            for one in node.report(NodeReport).snapshots
            if one.uid == snapshot.uid
        ],
        unknown=silent,
        home_exists=bool(homes),
        is_lost=status.node_uid is not None and not homes and not view.find(NODES_BY_POOL, status.pool_id),
        home_reports=bool(homes) and homes[0].status(NodeStatus).phase == "Ready",
        on_the_way=is_on_the_way(view, snapshot),
        silent=_find_silent_node(view, ordered or place),
    )


def _find_silent_node(view: View, allocation: Item | None) -> str:
    if allocation is None:
        return ""
    spec = allocation.spec(AllocationSpec)
    nodes = view.find(NODES_BY_UID, spec.node_uid)
    return spec.node if nodes and nodes[0].status(NodeStatus).phase in SILENT_PHASES else ""


def is_on_the_way(view: View, snapshot: Item) -> bool:
    """Whether its workload or one of its volumes migrates or changes pools, with its snapshots."""
    status = snapshot.status(SnapshotStatus)
    places = [
        *view.find(ALLOCATIONS_BY_WORKLOAD, status.workload_uid),
        *(place for disk in status.disks.values() for place in view.find(ALLOCATIONS_BY_VOLUME, disk.key)),
    ]
    specs = (place.spec(AllocationSpec) for place in places)
    return any(spec.migration is not None or spec.storage is not None for spec in specs)


def list_orders(allocation: Item) -> list[AllocatedSnapshot]:
    """The snapshots that the allocation's node is about to take."""
    return list_snapshots_to_take(allocation.spec(AllocationSpec), allocation.report(AllocationReport))


def list_disks(allocation: AllocationSpec) -> dict[str, SnapshotDisk]:
    """The disks of an allocation, by name."""
    root = SnapshotDisk(key=ROOT, size=allocation.resources.disk, pool=allocation.pool)
    volumes = {one.name: SnapshotDisk(key=one.uid, size=one.size, pool=one.pool) for one in allocation.volumes}
    return {ROOT: root, **volumes}
