"""Facts of one backup, its next step, and the order for a node, as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from weft.kinds.backup import (
    REPOSITORY_FAILED,
    REPOSITORY_MISSING,
    BackupActions,
    BackupSpec,
    BackupStatus,
    id_in_repository,
)
from weft.kinds.backup_repository import BackupRepositorySpec, BackupRepositoryStatus
from weft.kinds.fields.backup_work import BackupAct, BackupOrder, BackupReport
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.snapshot import SnapshotStatus
from weft.objects.envelope import Condition


class Repository(msgspec.Struct, frozen=True):
    name: str
    uid: str
    spec: BackupRepositorySpec
    status: BackupRepositoryStatus
    generation: int = 0


def explain_waiting(to: str, repository: Repository | None) -> tuple[str, str] | None:
    """Reason and message of a backup that can't begin yet, since its repository isn't ready; None: it can. Pure."""
    if repository is None:
        return REPOSITORY_MISSING, f"there is no backuprepository/{to}"
    status = repository.status
    if status.phase == "Ready":
        return None
    because = f": {status.message}" if status.message else ""
    if status.phase == "Failed":
        return REPOSITORY_FAILED, f"backuprepository/{to} is failed{because}"
    return "repositoryNotReady", f"backuprepository/{to} is not ready{because}"


class Node(msgspec.Struct, frozen=True):
    """One that is Ready."""

    name: str
    uid: str
    report: BackupReport | None = None  # on the backup's order, if that is the node's


class Snapshot(msgspec.Struct, frozen=True):
    name: str
    uid: str
    deleting: bool
    status: SnapshotStatus


class Earlier(msgspec.Struct, frozen=True):
    """The backup that this one may continue."""

    name: str
    uid: str
    snapshot_uid: str


class Test(msgspec.Struct, frozen=True):
    """A boot of the backup: a VM, and other objects."""

    workload: WorkloadStatus | None = None
    deleting: bool = False  # the VM
    healthy: Condition | None = None
    others: int = 0  # objects beside the VM


class BackupFacts(msgspec.Struct, frozen=True):
    name: str  # PROJECT/NAME
    uid: str
    deleting: bool
    spec: BackupSpec
    status: BackupStatus
    created_at: float
    actions: BackupActions = msgspec.field(default_factory=BackupActions)
    set: str = ""  # name of the backup of a whole project that it is a part of
    shared: bool = False  # another Backup stands for the same one in the repository
    repository: Repository | None = None
    subject: str = ""  # uid of what it is of; "": it is gone
    snapshot: Snapshot | None = None
    nodes: Sequence[Node] = ()  # those that could do its work, the best first
    asked: Node | None = None  # the one that its order is for, if it is Ready
    busy: str = ""  # name of another backup of the same that is being made
    earlier: Earlier | None = None
    lost: str = ""  # name of the newest backup that could be continued, if its snapshot were still there
    image: str = ""
    tested_first: str = ""  # PROJECT/NAME of another backup that is booted first, wherever
    test: Test | None = None  # what was made to boot it


class BackupPlan(msgspec.Struct, frozen=True):
    status: BackupStatus
    snapshot: Literal["", "make", "drop"] = ""
    drop_earlier: bool = False  # the snapshots that backups before it began from: nobody continues those any more
    release: bool = False
    test: Literal["", "make", "drop"] = ""


def make_order(facts: BackupFacts, node: Node, act: BackupAct, generation: int = 0) -> BackupOrder:
    repository = facts.repository
    assert repository is not None
    return BackupOrder(
        uid=facts.uid,
        act=act,
        node_uid=node.uid,
        generation=generation,
        repository=repository.name,
        repository_uid=repository.uid,
        repository_id=repository.status.id,
        url=repository.spec.url,
        immutable=repository.spec.immutable,
        backup=id_in_repository(facts.uid, facts.spec),
        name=facts.name,
    )
