"""What the agent knows of one allocation: the wish it read, what it did about it, what went wrong. Values only."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.kinds.allocation import ROOT, AllocatedNic, AllocationReport, AllocationSpec
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import short_id

# new: no run begun; starting: one is about to be started for ``restart_generation``; up: it was started; down: we ended it, or are
# ending it, because of a wish; ended: it ended by itself, for reason ``ended``.
Run = Literal["new", "starting", "up", "down", "ended"]


class MigrationState(msgspec.Struct, frozen=True):
    """What this node did as a side of the move ``key`` between this allocation and ``peer``. How far the machine is, the
    runtime says; this is what it can't.

    ``taken``: at the target, that the guest runs there and will; at the source, that the target has said so. ``over``: the
    target has given it up, the source has left it. ``port`` is the target's door's; ``shared`` the disks that both nodes see,
    so that neither is this one's to take away; ``node`` the name of the other node. ``cold``: its disks go, and the runtime
    knows nothing of it.
    """

    key: str
    side: Literal["source", "target"]
    peer: str
    taken: bool = False
    over: bool = False
    port: int = 0
    shared: tuple[str, ...] = ()
    node: str = ""
    cold: bool = False


class DiskRelocation(msgspec.Struct, frozen=True):
    """The move ``key`` of one disk to another pool. ``copying``: the old file is the disk; ``there``: the new one is;
    ``clear``: and the old one is gone; ``over``: the old one stays, and ``reason`` and ``message`` say why."""

    key: str
    disk: str
    pool: str
    pool_id: str
    old_pool: str
    old_pool_id: str
    state: Literal["copying", "there", "clear", "over"] = "copying"
    reason: str = ""
    message: str = ""


class AllocationState(msgspec.Struct, frozen=True):
    """What the agent must not forget when it is killed; kept beside the allocation's copy.

    ``made`` says that something of it may exist on this node; ``why`` what runs once ended before it ran; ``answered`` that the
    guest has answered in this run; ``orphan`` that a list of the server's no longer held it. ``leftover`` are NICs that it was to
    have, and is not any more: their ports go once the guest has let go of them. ``part`` is what it has in a move; ``took`` is the
    key of the move that it came here by. ``image`` is the digest of a container's image: the same for as long as it has this place,
    whatever its tag comes to mean, until people ask for it to be looked up again (``pulls`` of its spec as it was).
    """

    run: Run = "new"
    restart_generation: int = 0
    restarts: int = 0
    ended: str = ""
    why: str = ""
    answered: bool = False
    made: bool = False
    orphan: bool = False
    leftover: list[AllocatedNic] = []
    part: MigrationState | None = None
    store: DiskRelocation | None = None
    took: str = ""
    image: str = ""
    pulls: int = 0


class StepFailure(msgspec.Struct, frozen=True):
    """A step that failed: ``tries`` in a row; ``retry_at`` in elapsed seconds, None: not until the wish changes."""

    reason: str
    message: str
    tries: int
    retry_at: float | None


class LocalAllocation(msgspec.Struct, frozen=True):
    """One allocation as the server said it last. ``uid`` is its own."""

    name: str
    uid: str
    spec: AllocationSpec
    deleting: bool = False
    report: AllocationReport = msgspec.field(default_factory=AllocationReport)
    generation: int = 0

    @property
    def id(self) -> str:
        """The short id that names its guest, root disk and folder on this node."""
        return short_id(self.uid)

    @property
    def what(self) -> str:
        """The workload as people know it: ``vm/default/web``."""
        ref = self.spec.workload
        return f"{ref.kind}/{ref.project or '-'}/{ref.name}"


class PlanInput(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision about one allocation depends on, but for the guest's facts and the time.

    ``superseded``: a higher incarnation of the workload is placed here too; ``blocked``: what must be down before it may start;
    ``stale_volumes``: the data of all its volumes is another node's by now;
    ``unheard``: it comes from this node's memory, and the server hasn't said yet whether that is still so.
    ``restart_at`` is when a guest that ended by itself is to be started again (elapsed seconds). ``moving``: its part in the
    move that its spec says is being led, by this process; ``storing``: one of its disks' to another pool. ``unwell``: why it is
    to be ended, by its own health check.
    """

    wanted: LocalAllocation
    memory: AllocationState = AllocationState()
    trouble: StepFailure | None = None
    superseded: bool = False
    stale_volumes: bool = False
    blocked: str = ""
    unheard: bool = False
    can_suspend: bool = True
    can_adjust: bool = True
    restart_at: float = 0.0
    moving: bool = False
    storing: bool = False
    unwell: str = ""


def place_disks(wanted: LocalAllocation, store: DiskRelocation | None) -> LocalAllocation:
    """``wanted`` with its disks where they are by now, whether or not the server has heard."""
    if store is None or store.state not in ("there", "clear"):
        return wanted
    spec, at = wanted.spec, {"pool": store.pool, "pool_id": store.pool_id}
    if store.disk == ROOT:
        spec = msgspec.structs.replace(spec, **at)
    else:
        moved = [msgspec.structs.replace(v, **at) if v.uid == store.disk else v for v in spec.volumes]
        spec = msgspec.structs.replace(spec, volumes=moved)
    return msgspec.structs.replace(wanted, spec=spec)


def read_allocation(envelope: Envelope, spec: AllocationSpec | None = None) -> LocalAllocation:
    """The allocation in ``envelope``; ``spec`` is what its spec says, if that was read before."""
    return LocalAllocation(
        name=envelope.name,
        uid=envelope.uid,
        spec=spec if spec is not None else decode_part(envelope.spec, AllocationSpec),
        generation=envelope.generation,
        deleting=envelope.deleting_since is not None,
        report=decode_part(envelope.report, AllocationReport),
    )


def port_id(allocation_uid: str, nic_uid: str) -> str:
    """The id of a NIC's port here: per allocation, so that two incarnations on one node never share a tap."""
    return short_id(f"{allocation_uid}/{nic_uid}")
