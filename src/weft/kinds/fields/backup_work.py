"""Work on backups that a node is asked to do: the order, in the status of what it is about, and the node's report on it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

# copy: a snapshot into a repository; fetch: a backup into a pool, as a snapshot; verify: read all of it; forget: remove it from its
# repository; check: whether the repository is there, made if it is empty, and rid of what no backup needs.
# retain: lock it for longer; serve: have a VM begin from it at once, and copy it behind; adopt: read what the repository says of a
# backup that it has.
BackupAct = Literal["copy", "fetch", "verify", "forget", "check", "serve", "retain", "adopt"]


class BackupOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    uid: str  # of the Backup, of the Snapshot to fetch, or of the BackupRepository to check
    act: BackupAct
    node_uid: str  # whom it is for
    generation: int = 0  # of what may be requested again: a higher one is another request
    repository: str  # name of the BackupRepository
    repository_uid: str
    repository_id: str = ""  # that is written in it; "": it has none yet
    url: str
    opens_only: bool = False  # check: a place without a repository doesn't get one
    immutable: bool = False
    backup: str = ""  # id in the repository of the one to make, fetch, verify or forget: the uid of its Backup
    name: str = ""  # PROJECT/NAME of the Backup, for people
    snapshot: str = ""  # uid of the snapshot to copy
    base: str = ""  # id in the repository of the backup to continue
    base_snapshot: str = ""  # uid of the snapshot that this one was copied from
    manifest: dict[str, Any] = {}  # what the repository keeps of the Backup beside its disks
    disks: dict[str, str] = {}  # by name, root or a volume's: what the pool's records call it
    pool: str = ""  # to fetch to
    expires_at: float = 0.0  # unix seconds, to copy and to retain; 0: not locked

    @property
    def key(self) -> tuple[str, str, int]:
        return self.uid, self.act, self.generation


class BackupReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    uid: str
    act: BackupAct
    generation: int = 0
    phase: Literal["waiting", "working", "done", "failed"] = "waiting"
    progress: float = 0.0  # 0 to 1, in steps of a hundredth
    serves: bool = False  # a VM may begin from it
    repository_id: str = ""
    backups: int = 0  # in the repository, after a check, a copy or a removal
    bytes: int = 0  # of the disks, without holes; of a check: that the repository takes up
    stored_bytes: int = 0  # that a copy added to the repository
    unique_bytes: int = 0  # that no other backup there needs
    locked_until: float = 0.0  # unix seconds: nobody can delete it before; 0: not locked
    free: int = -1  # bytes left on the repository's storage; -1: unknown
    kept_bytes: int = -1  # of a copy, a removal: that the repository's backups take up now; -1: unknown
    full_because: str = ""  # why a copy doesn't continue the backup before it
    disks: dict[str, int] = {}  # sizes by name, as guests see them
    manifest: dict[str, Any] = {}  # of what is adopted: as in the order that it was made with
    damaged: list[str] = []  # what of it is damaged, at most 20
    finished_at: float = 0.0  # unix seconds
    reason: str = ""
    message: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.uid, self.act, self.generation
