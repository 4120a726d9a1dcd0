"""A migration in an allocation: what the spec of the end on this node, and its report."""

from __future__ import annotations

from typing import Literal

import msgspec


class PastMigration(msgspec.Struct, kw_only=True, frozen=True):
    """How far a migration that has ended came from its forecast, before any correction of that."""

    mode: str
    duration_seconds: float  # measured duration
    duration_ratio: float  # measured duration as a multiple of the forecast
    pause_seconds: float = 0.0  # measured downtime; 0: unknown
    pause_more_seconds: float = 0.0  # measured downtime minus the forecast
    bytes_ratio: float  # transferred bytes as a multiple of the forecast
    weight: float = 1.0  # weight in the next forecast


class MigrationLesson(msgspec.Struct, kw_only=True, frozen=True):
    """Lesson of earlier migrations."""

    path_bytes_per_second: int = 0  # rate of the path; 0: unknown
    past: tuple[PastMigration, ...] = ()  # past migrations, newest first


class AllocatedMigration(msgspec.Struct, kw_only=True, frozen=True):
    """The migration that this allocation is an end of, as its role says."""

    key: str  # the Migration's uid, and the number of the try
    mode: Literal["live", "cold"] = "live"
    peer: str  # the other end's node; CLUSTER/NODE: one of a linked cluster
    peer_uid: str  # uid of that node, as in its certificate
    peer_ca: str = ""  # CA certificate (PEM) of the other end's cluster, the only one trusted; "": its own
    peer_allocation: str  # allocation of the other end
    address: str = ""  # of the target's listener, once it listens (source only)
    bytes_per_second: int = 0  # limit of this migration; 0: none
    node_bytes_per_second: int = 0  # limit of all migrations from and to this end's node together; 0: none
    peer_bytes_per_second: int = 0  # limit of all migrations from and to the peer; 0: none
    pause_ms: int = 300  # longest pause to aim for
    never_ran: bool = False  # the target has reported that the guest never ran there (source only)
    taken_over: bool = False  # the target has reported that it runs the guest (source only)
    lesson: MigrationLesson | None = None  # for the forecast (source only)
    shared: tuple[str, ...] = ()  # disks (ROOT, or uids of volumes) that both nodes see: they stay where they are
    image: str = ""  # digest of a container's image: the target runs the same, whatever the tag means by now
    rests: str = ""  # how the guest has ended by itself: the target doesn't start it again
    saves: Literal["", "may", "must"] = (
        ""  # a container is saved and restored, not stopped and started; may: unless it can't be saved
    )


def read_migration(key: str) -> str:
    """The uid of the Migration that a key of a try is of."""
    return key.partition(".")[0]


def is_between_clusters(migration: AllocatedMigration | None) -> bool:
    """Whether the other end is a linked cluster's node: it shares no network, disk, snapshot or uid with this one."""
    return migration is not None and bool(migration.peer_ca)


def names_other_cluster(peer: str) -> bool:
    """Whether a migration's other end, by its name, is a linked cluster's node."""
    return "/" in peer


def limits_of(migration: AllocatedMigration) -> tuple[int, int, int]:
    """All its limits, in bytes per second; 0 is none."""
    return migration.bytes_per_second, migration.node_bytes_per_second, migration.peer_bytes_per_second


class AllocatedDiskRelocation(msgspec.Struct, kw_only=True, frozen=True):
    """One disk that changes to another pool of the node."""

    key: str  # the Migration's uid
    disk: str  # ROOT, or a volume's uid
    pool: str
    pool_id: str
    bytes_per_second: int = 0
    cancel: bool = False


class PlannedMigration(msgspec.Struct, kw_only=True, frozen=True):
    """How the source will migrate, from its guest's load and the path. The figures are already multiplied by the factors."""

    mode: str = ""
    reason: str = ""
    duration_seconds: float = 0.0
    pause_seconds: float = 0.0
    bytes: int = 0
    passes: int = 0
    streams: int = 0
    chunk_bytes: int = 0
    ratio: float = 0.0
    confidence: float = 0.0
    dirty_bytes_per_second: int = 0
    path_bytes_per_second: int = 0
    limit_bytes_per_second: int = 0  # the limit of this migration or of either node; 0: none
    duration_factor: float = 1.0  # correction by past migrations
    pause_factor: float = 1.0
    bytes_factor: float = 1.0


MigrationReportPhase = Literal[
    "preparing", "waiting", "migrating", "switching", "handedOver", "takenOver", "abandoned", "failed"
]


class MigrationReport(msgspec.Struct, kw_only=True, frozen=True):
    """Report of one end of a migration."""

    key: str
    phase: MigrationReportPhase
    address: str = ""  # host:port of the target's listener, once it listens
    reason: str = ""
    message: str = ""
    plan: PlannedMigration | None = None
    sent_bytes: int = 0  # on the wire
    total_bytes: int = 0
    remaining_bytes: int = 0
    passes: int = 0
    bytes_per_second: int = 0
    dirty_bytes_per_second: int = 0
    pause_ms: int = 0  # as measured, from the stop of the source to the start of the target
    elapsed_ms: int = 0
    peer: str = (
        ""  # the other end's node, of a guest that was handed over by a migration that the allocation doesn't have
    )
    peer_allocation: str = ""  # of the same: the uid of the allocation there that it was handed over to
