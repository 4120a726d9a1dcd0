"""Work on volumes that a node is asked to do by itself, without a workload: the order, which is in the status of what it is about,
and the node's report on it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.kinds.fields.allocated_snapshot import Consistency

# take: a snapshot of volumes, all at one instant; make: a new volume from a snapshot's disk; replace: a volume that nothing uses
# goes back to a snapshot's disk.
VolumeAct = Literal["take", "make", "replace"]


class OrderedVolume(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    uid: str
    name: str
    pool: str = ""
    pool_id: str = ""


class VolumeOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    uid: str  # of the Snapshot to take, or of the Volume
    act: VolumeAct
    node_uid: str  # whom it is for
    generation: int = 0  # of the volume that is to go back: a higher one is another restore
    snapshot: str  # uid
    snapshot_name: str = ""  # for people
    volumes: list[OrderedVolume]  # to take; or the one to make or replace
    disk: str = ""  # of the snapshot, to make or replace from: as its pool's records call it
    size: int = 0  # bytes of a volume to make, at least

    @property
    def key(self) -> tuple[str, str, int]:
        return self.uid, self.act, self.generation


class TrimOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Have the VM that uses a volume give back what its file systems don't use."""

    uid: str  # of the Volume
    generation: int  # a higher one is another trim
    node_uid: str
    workload: str  # uid of the VM

    @property
    def key(self) -> tuple[str, int]:
        return self.uid, self.generation


class TrimReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    uid: str
    generation: int
    phase: Literal["working", "done", "failed"] = "working"
    trimmed: int = 0  # bytes of all its disks, as the guest says
    freed: int = 0  # bytes of the volume that its pool got back
    reason: str = ""
    message: str = ""

    @property
    def key(self) -> tuple[str, int]:
        return self.uid, self.generation


class VolumeReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    uid: str
    act: VolumeAct
    generation: int = 0
    phase: Literal["working", "done", "failed"] = "working"  # a failed one is final, unless ``again``
    again: bool = False  # the node tries it again
    consistency: Consistency = "stopped"
    disks: dict[str, int] = {}  # sizes in bytes by the volumes' uids
    size: int = 0  # bytes that the snapshot takes up beside lower ones
    pause_ms: float = 0.0  # how long writers stood still
    taken_at: float = 0.0  # unix seconds
    pool: str = ""
    pool_id: str = ""
    reason: str = ""
    message: str = ""

    @property
    def is_over(self) -> bool:
        return self.phase == "done" or (self.phase == "failed" and not self.again)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.uid, self.act, self.generation
