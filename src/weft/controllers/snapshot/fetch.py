"""A snapshot that is fetched from a backup: which node does it, and how that goes. Pure, but for reading the view.

Called by the controller of snapshots for those that are on no node yet. Once a node keeps it, it is a snapshot like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from weft.controllers.backup.facts import find_asked, list_nodes, read_repository
from weft.controllers.backup.model import Node, Repository
from weft.informer.view import Item, View
from weft.kinds.backup import BackupSpec, BackupStatus, id_in_repository
from weft.kinds.fields.backup_work import BackupOrder, BackupReport
from weft.kinds.node import NODES_BY_SNAPSHOT, NODES_BY_UID, NodeActions, NodeReport, NodeSpec, NodeStatus, find_cordon
from weft.kinds.snapshot import SnapshotMarks, SnapshotStatus
from weft.objects.identity import object_key


def is_fetched(snapshot: Item) -> bool:
    """Whether it is on no node yet, and comes from a backup."""
    pending = snapshot.status(SnapshotStatus).phase in ("Pending", "Taking")
    return bool(snapshot.marks(SnapshotMarks).backup) and pending and not snapshot.deleting


def plan_fetch(view: View, snapshot: Item) -> SnapshotStatus:
    status, name = snapshot.status(SnapshotStatus), snapshot.marks(SnapshotMarks).backup
    backup = view.get(object_key("backup", snapshot.envelope.project, name))
    if backup is None or backup.deleting or backup.status(BackupStatus).phase != "Ready":
        return _fail(status, "backupGone", f"backup/{name} is gone")
    repository = read_repository(view, backup.spec(BackupSpec).to)
    if repository is None:
        return _fail(status, "repositoryGone", f"the repository of backup/{name} is gone")
    made = backup.status(BackupStatus)
    pool = snapshot.marks(SnapshotMarks).pool
    nodes = list_nodes(view, status.order, first=made.node, pool=pool)
    is_of_loss = snapshot.marks(SnapshotMarks).automatic == "loss"
    if is_of_loss:  # those of one node go to many, and one that is tried again to another
        nodes.sort(key=lambda node: hashlib.sha256(f"{snapshot.uid} {node.uid}".encode()).digest())
    asked = find_asked(nodes, status.order)
    if status.order is not None and status.order.act == "serve" and (status.serves or asked is not None):
        return _follow_serving(status, made, name, asked.report if asked is not None else None)
    if asked is not None and asked.report is not None and asked.report.phase == "failed":
        return _fail(status, asked.report.reason, f"backup/{name} could not be fetched: {asked.report.message}")
    keeps = any(node.uid == status.node_uid for node in view.find(NODES_BY_SNAPSHOT, snapshot.uid))
    if asked is not None and asked.report is not None and asked.report.phase == "done":
        return _keep(status, made, name) if keeps else status
    if asked is not None:
        report = asked.report or BackupReport(uid=snapshot.uid, act="fetch")
        said = f"fetched from backup/{name}: {round(100 * report.progress)} %"
        message = f"{said}; {report.message}" if report.message else said
        return msgspec.structs.replace(status, reason=report.reason, message=message)
    if not nodes:
        return msgspec.structs.replace(
            status, order=None, reason="nodeNotReady", message=f"waits for a ready node with storage pool {pool}"
        )
    chosen = _choose(view, nodes, made.workload_spec)
    if chosen is None and is_of_loss:
        message = "waits for a node with enough free for it"
        return msgspec.structs.replace(status, order=None, reason="nodeNotReady", message=message)
    return _give(status, snapshot, backup, repository, chosen or nodes[0])


def _choose(view: View, nodes: list[Node], workload_spec: Mapping[str, Any]) -> Node | None:
    """The first with enough free for the VM beside what is fetched for others now: the VM is placed where its disks are."""
    asked = _find_size(workload_spec)
    under_way = dict[str, tuple[float, float]]()
    for other in view.of_kind("snapshot").values():
        one = other.status(SnapshotStatus)
        if is_fetched(other) and one.order is not None:
            cpu, memory = under_way.get(one.order.node_uid, (0.0, 0.0))
            more = _find_size(one.workload_spec)
            under_way[one.order.node_uid] = (cpu + more[0], memory + more[1])
    for node in nodes:
        cpu, memory = under_way.get(node.uid, (0.0, 0.0))
        for item in view.find(NODES_BY_UID, node.uid):
            spec, status, report = item.spec(NodeSpec), item.status(NodeStatus), item.report(NodeReport)
            free_cpu = report.cpu * spec.overcommit.get("cpu", 1.0) - status.allocated_cpu - cpu
            free_memory = report.memory * spec.overcommit.get("memory", 1.0) - status.allocated_memory - memory
            wanted = item.actions(NodeActions)
            closed = find_cordon(wanted, status) or wanted.maintenance
            if not closed and free_cpu >= asked[0] and free_memory >= asked[1]:
                return node
    return None


def _find_size(workload_spec: Mapping[str, Any]) -> tuple[float, float]:
    """Cores and bytes of memory; a volume has none."""
    return float(workload_spec.get("cpu") or 0.0), float(workload_spec.get("memory") or 0.0)


def _follow_serving(
    status: SnapshotStatus, made: BackupStatus, name: str, report: BackupReport | None
) -> SnapshotStatus:
    """A VM may stand on it from its first report on, so it stays on that node, whatever happens there."""
    if report is None:
        waits = f"waits for node {status.node}" if status.serves else f"is about to be served from backup/{name}"
        return msgspec.structs.replace(status, message=waits)
    if report.phase == "done":
        return _keep(status, made, name)
    if report.phase == "failed":
        return _fail(status, report.reason, f"backup/{name} could not be served: {report.message}")
    said = f"; {report.message}" if report.message else ""
    message = f"served from backup/{name} until its disks are copied{said}"
    return msgspec.structs.replace(
        status,
        serves=report.serves or status.serves,
        taken_at=made.taken_at,
        consistency=made.consistency,
        reason=report.reason,
        message=message,
    )


def _give(status: SnapshotStatus, snapshot: Item, backup: Item, repository: Repository, node: Node) -> SnapshotStatus:
    made, name = backup.status(BackupStatus), backup.envelope.name
    pool = snapshot.marks(SnapshotMarks).pool
    order = BackupOrder(
        uid=snapshot.uid,
        act="serve" if snapshot.marks(SnapshotMarks).instant else "fetch",
        node_uid=node.uid,
        repository=repository.name,
        repository_uid=repository.uid,
        repository_id=repository.status.id,
        url=repository.spec.url,
        backup=id_in_repository(backup.uid, backup.spec(BackupSpec)),
        name=f"{backup.envelope.project}/{name}",
        snapshot=snapshot.uid,
        disks={disk: one.key for disk, one in made.disks.items()},
        manifest={"disks": msgspec.to_builtins(made.disks)},
        pool=pool,
    )
    return msgspec.structs.replace(
        status,
        phase="Taking",
        order=order,
        node=node.name,
        node_uid=node.uid,
        pool=pool,
        disks={disk: msgspec.structs.replace(one, pool=pool) for disk, one in made.disks.items()},
        workload_uid=made.workload_uid,
        workload_spec=made.workload_spec,
        image_sha256="",  # its root disk is whole: any image does that boots it
        reason="",
        message=f"fetched from backup/{name}",
    )


def _keep(status: SnapshotStatus, made: BackupStatus, name: str) -> SnapshotStatus:
    return msgspec.structs.replace(
        status,
        phase="Ready",
        order=None,
        serves=False,
        listed=True,
        taken_at=made.taken_at,
        consistency=made.consistency,
        reason="",
        message=f"from backup/{name}",
    )


def _fail(status: SnapshotStatus, reason: str, message: str) -> SnapshotStatus:
    return msgspec.structs.replace(status, phase="Failed", order=None, reason=reason, message=message)
