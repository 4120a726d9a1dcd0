"""Work on replication that a node is asked to do: the order, in the status of what it is about, and the node's report on it.

A point is known by the uid of the snapshot at the source that it is a copy of.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

MOST_DISKS = 64
# Of a replica's spec, what its source may change of one that is there.
OWN_FIELDS = ("workload", "disks", "rpo", "keep")


class ReplicationOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Part common to both orders: which it is, for whom, and the replica."""

    uid: str  # of the Replication
    node_uid: str  # whom it is for
    attempt: int  # a higher one is another request
    cluster: str  # name of the Cluster that the replica is at; "": this one
    project: str  # of the replica, there
    replica: str  # its name
    own_project: str = ""  # of the Replication

    @property
    def key(self) -> tuple[str, int]:
        return self.uid, self.attempt


class SendOrder(ReplicationOrder, frozen=True, kw_only=True, omit_defaults=True):
    """Order in ``replication.status``: send a snapshot to the replica."""

    manifest: dict[str, Any]  # the replica's spec, as it should be there
    snapshot: str  # uid of the one to send
    since: str = ""  # uid of the snapshot that the replica has; "": none
    generation: int = 1
    disks: dict[str, str] = {}  # by name, root or a volume's: what the pool's records call it
    image_sha256: str = ""  # content of the image that its root disk stands on
    taken_at: float = 0.0  # unix seconds, by the source's clock
    consistency: str = ""
    age_seconds: float = 0.0  # of the snapshot, when the order was given
    begun_at: float = 0.0  # unix seconds, by the server's clock: when the snapshot was ordered
    final: bool = False  # the VM was handed over: it has written nothing since, and writes nothing more
    has_points: bool = False  # the replica took one before: if it is gone, it isn't made again
    # The VM may be started again after this point: it counts once the replica shows it, and is no primary.
    confirms: bool = False


class AskOrder(ReplicationOrder, frozen=True, kw_only=True):
    """Order in ``replication.status`` while nothing is sent: ask now and then whether the replica was promoted or is gone. Only
    that is reported, as a failure. Attempts are counted together with those to send."""


class SendReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to the SendOrder or AskOrder with the same ``uid`` and ``attempt``."""

    uid: str
    attempt: int
    phase: Literal["working", "done", "failed"] = "working"
    number: int = 0  # that the point has at the replica
    bytes: int = 0  # sent so far
    total: int = 0  # to send
    seconds: float = 0.0  # that it took
    is_whole: bool = False  # all was sent, not what changed
    reason: str = ""
    message: str = ""

    @property
    def key(self) -> tuple[str, int]:
        return self.uid, self.attempt


class ReceiveOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Order in ``replica.status``: take the next point in, if one comes."""

    uid: str  # of the Replica
    node_uid: str  # whom it is for
    generation: int
    origin: str  # uid of the Replication that may send
    number: int  # of the next point
    snapshot: str  # uid that the next point gets as a snapshot here
    pool: str
    parent: str = ""  # uid of the newest point's snapshot here; "": there is no point
    parent_source: str = ""  # uid that this one has at the source
    disks: dict[str, int] = {}  # the largest sizes, by the disks' names

    @property
    def key(self) -> tuple[str, str]:
        return self.uid, self.snapshot


class ReceivedDisk(msgspec.Struct, frozen=True, omit_defaults=True):
    key: str  # what the pool's records call it
    size: int


class ReceiveReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to the order with the same ``uid`` and ``snapshot``."""

    uid: str
    snapshot: str
    phase: Literal["receiving", "done"] = "receiving"
    source: str = ""  # uid of the snapshot that it is a copy of
    disks: dict[str, ReceivedDisk] = {}
    bytes: int = 0  # that came
    taken_at: float = 0.0  # unix seconds, by the source's clock
    age_seconds: float = 0.0  # when it was complete
    consistency: str = ""
    final: bool = False  # its source has written nothing since

    @property
    def key(self) -> tuple[str, str]:
        return self.uid, self.snapshot
