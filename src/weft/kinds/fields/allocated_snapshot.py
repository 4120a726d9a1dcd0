"""Snapshots of an allocation: those to take, the one that its workload begins from, and what its node reports of them."""

from __future__ import annotations

from typing import Literal

import msgspec

# What the disks have in common. memory: they are as the kept memory takes them to be; filesystem: their file systems were frozen;
# crash: as after a power cut; stopped: the guest did not run.
# The turns of a group's members, whose snapshots are of one instant: all that the node needs is there; the guest stands still, or
# doesn't run anyway; it runs on and the snapshot counts; or it doesn't count. "": one that belongs to no group.
GroupTurn = Literal["", "prepare", "hold", "go", "drop"]
Consistency = Literal["memory", "filesystem", "crash", "stopped"]


class AllocatedSnapshot(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A snapshot to take of the workload."""

    uid: str
    name: str
    memory: bool = False
    turn: GroupTurn = ""
    turn_at: float = 0.0  # unix seconds: since when it is this turn


class AllocatedOrigin(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The snapshot that the workload's disks come from; ``disks`` gives by own disk, ROOT or a volume's uid, the snapshot's."""

    snapshot: str  # uid
    name: str = ""  # for people
    generation: int = 0  # 0: the workload begins so; else it is restored in place, until its report has the same number
    disks: dict[str, str] = {}
    memory: bool = False  # it goes on from the snapshot's memory
    identity: bool = False  # it gets a name and addresses of its own, since the snapshot's workload may run beside it
    keeps: AllocatedSnapshot | None = None  # in place: what stands there is kept as this snapshot; None: it goes
    lost_since: float = (
        0.0  # of one that goes on from it after its node was lost: when it was taken, in seconds since 1970
    )


class SnapshotReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Outcome of a snapshot that its node was to take."""

    uid: str
    phase: Literal["taking", "ready", "failed"] = "taking"
    turn: Literal["", "prepare", "hold"] = ""  # of a group's member: the last turn that it is done with
    consistency: Consistency = "crash"
    disks: dict[str, int] = {}  # sizes in bytes, of ROOT and of volumes by uid
    size: int = 0  # bytes that it takes up beside lower snapshots, with its memory
    memory: int = 0  # bytes of its memory
    pause_ms: float = 0.0  # how long the guest stood still
    taken_at: float = 0.0  # unix seconds
    pool: str = ""  # of the root disk
    pool_id: str = ""
    reason: str = ""
    message: str = ""
