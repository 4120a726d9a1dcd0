"""The values of an agent's state of one allocation. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.kinds.allocation import ROOT, AllocatedNic, AllocationReport, AllocationSpec
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, AllocatedSnapshot, Consistency, SnapshotReport
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import short_id

# new: no run has begun; starting: one is about to start for ``restart_generation``; up: it was started; down: this agent ended it
# or is ending it, by its spec; ended: it ended by itself, for reason ``ended``.
Run = Literal["new", "starting", "up", "down", "ended"]


class MigrationState(msgspec.Struct, frozen=True):
    """This node's part of one migration, beside the machine's progress, which the runtime knows."""

    key: str
    role: Literal["source", "target"]  # this node's
    peer: str  # uid of the allocation at the other end
    taken: bool = False  # target: the guest runs here, and will; source: the target has reported that
    over: bool = False  # target: the guest was given up; source: the guest was left
    port: int = 0  # of the target's listener
    shared: tuple[str, ...] = ()  # disks that both nodes use: neither may remove them
    node: str = ""  # name of the node at the other end
    cold: bool = False  # only disks migrate, and the runtime takes no part
    between_clusters: bool = False  # its snapshots stay with this node
    failed: bool = False  # source, between clusters: the guest stays here, and isn't sent by this migration any more


class DiskRelocation(msgspec.Struct, frozen=True):
    """The relocation of one disk to another pool of this node."""

    key: str
    disk: str
    pool: str
    pool_id: str
    old_pool: str
    old_pool_id: str
    # copying: the old file is the disk; there: the new one is; clear: the old one is removed too; over: the old one stays.
    state: Literal["copying", "there", "clear", "over"] = "copying"
    reason: str = ""  # why the old one stays
    message: str = ""


class TakenDisk(msgspec.Struct, frozen=True):
    """A disk of a snapshot that is being taken, where it was then."""

    pool: str
    pool_id: str
    name: str = ""  # of the volume; "" for a root disk


class Taking(msgspec.Struct, frozen=True):
    """A snapshot that is being taken. ``disks`` go by ROOT or the volume's uid."""

    snapshot: AllocatedSnapshot
    disks: dict[str, TakenDisk]
    live: bool  # the guest ran: its runtime knows how far it is
    finished: bool = (
        False  # the disks stand on their new layers for good; what follows is the memory, and the pools' records
    )
    consistency: Consistency = "stopped"
    pause_ms: float = 0.0
    taken_at: float = 0.0  # unix seconds
    message: str = ""  # why it is less than was asked


class Checkpoint(msgspec.Struct, frozen=True):
    """The part of an ``AllocationState`` that survives a crash of the agent."""

    run: Run = "new"
    restart_generation: int = 0
    restarts: int = 0
    ended: str = ""
    why: str = ""  # why a workload that runs once ended before it ran
    answered: bool = False  # the guest has answered in this run
    made: bool = False  # something of it may exist on this node
    orphan: bool = False  # the server's list no longer had it
    leftover: list[
        AllocatedNic
    ] = []  # NICs that the spec lost: their ports are removed after the guest has dropped them
    migration: MigrationState | None = None
    relocation: DiskRelocation | None = None
    arrived_by: str = ""  # key of the migration by which it came here
    image: str = ""  # digest of a container's image, kept while the container has this place, even if its tag changes
    pulls: int = 0  # ``pulls`` of the spec for which the image was resolved
    begun: bool = False  # its lease has begun here
    taking: Taking | None = None  # nothing else is done to its disks until this is over
    taken: list[SnapshotReport] = []  # of the spec's snapshots, those that are ready or have failed
    restoring: AllocatedOrigin | None = None  # some of its disks may be those of this snapshot already; the rest follow
    restored: int = 0  # generation of the origin that its disks were restored from in place
    begun_from: int | None = None  # generation of the origin from which a guest has begun
    held: bool = False  # the node's guard has held its guest, and may have said so
    guarded: int = 0  # the spec's ``loss_guard`` that the guard carries out, or dropped


class StepFailure(msgspec.Struct, frozen=True):
    reason: str
    message: str
    tries: int  # in a row
    retry_at: float | None  # elapsed seconds; None: not until the spec changes


class Health(msgspec.Struct, frozen=True):
    """The result of the workload's own health check."""

    state: Literal["", "starting", "healthy", "unhealthy"] = ""  # "": it has no check, or doesn't run
    failures: int = 0  # in a row
    message: str = ""  # of the last failure


class SetUp(msgspec.Struct, frozen=True):
    """The result of a VM's first-boot setup."""

    state: Literal["", "running", "done", "failed"] = ""  # "": it has none, or doesn't run, or can't be asked
    message: str = ""  # why it failed


class LocalAllocation(msgspec.Struct, frozen=True):
    """One allocation as the server sent it last."""

    name: str
    uid: str  # the allocation's own
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
        """The workload's name for people: ``vm/default/web``."""
        ref = self.spec.workload
        return f"{ref.kind}/{ref.project or '-'}/{ref.name}"

    @property
    def short_name(self) -> str:
        """``vm/web``, for people who have named its project themselves."""
        return f"{self.spec.workload.kind}/{self.spec.workload.name}"

    @property
    def shares_kernel(self) -> bool:
        """Whether it runs on the node's own kernel."""
        container = self.spec.container
        return container is not None and container.isolation == "container"


def place_disks(local: LocalAllocation, relocation: DiskRelocation | None) -> LocalAllocation:
    """``local`` with its disks where they are now, even if the server doesn't know yet."""
    if relocation is None or relocation.state not in ("there", "clear"):
        return local
    spec, at = local.spec, {"pool": relocation.pool, "pool_id": relocation.pool_id}
    if relocation.disk == ROOT:
        spec = msgspec.structs.replace(spec, **at)
    else:
        volumes = [msgspec.structs.replace(v, **at) if v.uid == relocation.disk else v for v in spec.volumes]
        spec = msgspec.structs.replace(spec, volumes=volumes)
    return msgspec.structs.replace(local, spec=spec)


def read_allocation(envelope: Envelope, spec: AllocationSpec | None = None) -> LocalAllocation:
    """The allocation in ``envelope``; ``spec`` is its spec, if already decoded."""
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
