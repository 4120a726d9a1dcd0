"""Facts of one backup: its subject, its snapshot, its repository, and the nodes that could work on it."""

from __future__ import annotations

from weft.controllers.backup.boot import find_test, find_tested_first
from weft.controllers.backup.model import BackupFacts, Earlier, Node, Repository, Snapshot
from weft.informer.view import Item, View
from weft.kinds.allocation import LOCAL
from weft.kinds.backup import (
    BACKUPS_BY_SUBJECT,
    BACKUPS_BY_UID,
    SET,
    BackupActions,
    BackupSpec,
    BackupStatus,
    id_in_repository,
    subject_key,
)
from weft.kinds.backup_repository import BACKUP_REPOSITORY, BackupRepositorySpec, BackupRepositoryStatus
from weft.kinds.fields.backup_work import BackupOrder
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.orders import find_report
from weft.kinds.registry import BY_NAME
from weft.kinds.snapshot import SNAPSHOTS_BY_UID, SnapshotStatus
from weft.kinds.vm import VmSpec
from weft.objects.identity import object_key

_MAKING = ("Snapshotting", "Copying")


def read_facts(view: View, backup: Item) -> BackupFacts:
    spec, status = backup.spec(BackupSpec), backup.status(BackupStatus)
    subject, envelope = view.get(subject_key(backup)), backup.envelope
    nodes = list_nodes(view, status.order, first=status.node)
    others = [item for item in view.find(BACKUPS_BY_SUBJECT, subject_key(backup)) if item.uid != backup.uid]
    return BackupFacts(
        name=f"{envelope.project}/{envelope.name}",
        uid=backup.uid,
        deleting=backup.deleting,
        spec=spec,
        actions=backup.actions(BackupActions),
        status=status,
        created_at=envelope.created_at,
        set=envelope.labels.get(SET, ""),
        shared=_is_shared(view, backup),
        repository=read_repository(view, spec.to),
        subject=subject.uid if subject is not None and not subject.deleting else "",
        snapshot=_read_snapshot(view, status.snapshot_uid),
        nodes=nodes,
        asked=find_asked(nodes, status.order),
        busy=next((item.envelope.name for item in others if _is_made_first(item, backup)), ""),
        earlier=(earlier := _find_earlier(view, backup, others)),
        lost=_find_lost(backup, others) if earlier is None else "",
        image=subject.spec(VmSpec).image
        if subject is not None and BY_NAME[subject.envelope.kind].snapshots == "machine"
        else "",
        tested_first=find_tested_first(view, backup),
        test=find_test(view, backup),
    )


def read_repository(view: View, name: str) -> Repository | None:
    item = view.get(object_key(BACKUP_REPOSITORY.name, None, name))
    if item is None:
        return None
    spec, status = item.spec(BackupRepositorySpec), item.status(BackupRepositoryStatus)
    return Repository(name, item.uid, spec, status, item.envelope.generation)


def list_nodes(view: View, order: BackupOrder | None, *, first: str = "", pool: str = LOCAL) -> list[Node]:
    """The nodes that are Ready and have the pool, ``first`` before the others, each with its report on ``order``."""
    ready = [node for node in view.of_kind("node").values() if node.status(NodeStatus).phase == "Ready"]
    ready = [node for node in ready if any(one.name == pool for one in node.report(NodeReport).pools)]
    ready.sort(key=lambda node: (node.envelope.name != first, node.envelope.name))
    return [
        Node(
            node.envelope.name,
            node.uid,
            find_report(node.report(NodeReport).orders.backup, order)
            if order is not None and order.node_uid == node.uid
            else None,
        )
        for node in ready
    ]


def find_asked(nodes: list[Node], order: BackupOrder | None) -> Node | None:
    """The node that the order is for."""
    return next((node for node in nodes if order is not None and node.uid == order.node_uid), None)


def _read_snapshot(view: View, uid: str) -> Snapshot | None:
    for item in view.find(SNAPSHOTS_BY_UID, uid) if uid else ():
        return Snapshot(item.envelope.name, item.uid, item.deleting, item.status(SnapshotStatus))
    return None


def _is_made_first(item: Item, backup: Item) -> bool:
    """Whether this backup waits for ``item``: one of a thing is made at a time, so that each continues the one before."""
    phase = item.status(BackupStatus).phase
    if item.deleting:
        return False
    older = (item.envelope.created_at, item.uid) < (backup.envelope.created_at, backup.uid)
    return phase in _MAKING or (phase == "Pending" and older and not item.status(BackupStatus).reason)


def _find_earlier(view: View, backup: Item, others: list[Item]) -> Earlier | None:
    """The newest backup in the same repository whose snapshot is still there."""
    to, best = backup.spec(BackupSpec).to, None
    for item in others:
        status = item.status(BackupStatus)
        if item.deleting or status.phase != "Ready" or item.spec(BackupSpec).to != to or not status.taken_at:
            continue
        snapshot = _read_snapshot(view, status.snapshot_uid)
        if snapshot is None or snapshot.deleting or snapshot.status.phase != "Ready":
            continue
        if best is None or status.taken_at > best[0]:
            best = (status.taken_at, Earlier(item.envelope.name, item.uid, snapshot.uid))
    return best[1] if best is not None else None


def _is_shared(view: View, backup: Item) -> bool:
    spec = backup.spec(BackupSpec)
    place = backup.status(BackupStatus).repository_id
    return any(
        item.uid != backup.uid and not item.deleting and item.status(BackupStatus).repository_id == place
        for item in view.find(BACKUPS_BY_UID, id_in_repository(backup.uid, spec))
    )


def _find_lost(backup: Item, others: list[Item]) -> str:
    """The name of the newest backup in the same repository; "": there is none yet."""
    to = backup.spec(BackupSpec).to
    there = [
        (status.taken_at or 0.0, item.envelope.name)
        for item in others
        if not item.deleting and item.spec(BackupSpec).to == to and not item.spec(BackupSpec).adopts
        for status in [item.status(BackupStatus)]
        if status.phase == "Ready"
    ]
    return max(there)[1] if there else ""
