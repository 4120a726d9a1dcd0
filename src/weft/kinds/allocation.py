"""Allocation: one workload's place on one node, in one incarnation. The scheduler writes spec, the node reports, and a
workload's status is folded from these. The node acts on nothing but its own allocations, so all it needs is in here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.allocated_migration import (
    AllocatedDiskRelocation,
    AllocatedMigration,
    MigrationReport,
    names_other_cluster,
    read_migration,
)
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, AllocatedSnapshot, SnapshotReport
from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.fields.lease import LEASE_ENDED, PREEMPTED, AllocatedLease
from weft.kinds.fields.service.readiness import ReadinessReport
from weft.kinds.record import Access, Column, Display, Index, Kind, Lifetime, Stored
from weft.objects.identity import Ref, object_key
from weft.objects.schema import field

Word = Annotated[str, field("", max_length=4096, shown="word")]
Desired = Literal["run", "stop", "suspend"]
Boot = Literal["auto", "warm", "cold"]
LOCAL = "local"  # the pool that every node has
ROOT = "root"  # a root disk, where disks are named; volumes are by their uid
DISK_FAILED = "diskFailed"  # reason of a report: its machine stands still, since a disk of it can't be written
# pending: not begun; preparing: image, disks, network; starting: the machine runs, the guest hasn't answered; released:
# everything of it is gone from the node.
MOST_BACK_FROM = 16
LEFT_CLUSTER = "leftCluster"  # a node's word: the node of another cluster took its guest over for good
AllocationPhase = Literal[
    "pending", "preparing", "starting", "running", "stopping", "suspended", "stopped", "failed", "released"
]


class Resources(msgspec.Struct, kw_only=True, frozen=True):
    """Resources that an allocation takes of a node."""

    cpu: float = 0.0  # cores
    memory: int = 0  # bytes
    disk: int = 0  # bytes


class AllocatedImage(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """An image on a server, by digest."""

    name: str
    uid: str
    sha256: str
    size: int  # bytes
    url: str  # where the node downloads it
    digest: str = ""  # digest of the container image in the file, sha256:…; "": none


class AllocatedVolume(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A volume that is attached."""

    name: str
    uid: str
    size: int  # bytes
    pool: str = LOCAL  # the pool with its data
    pool_id: str = ""  # id of that pool's storage
    encrypted: bool = False


class AllocatedNic(msgspec.Struct, kw_only=True, frozen=True):
    """One NIC, with all its network's facts that never change."""

    uid: str  # uid of its endpoint
    network: str
    network_uid: str
    vni: int
    cidr: str
    gateway: str
    mtu: int
    domain: str
    nat: bool
    mac: str
    address: str


class AllocatedRule(msgspec.Struct, kw_only=True, frozen=True):
    """One rule of a security group."""

    protocol: Literal["tcp", "udp", "icmp", "any"]
    first_port: int = 0
    last_port: int = 65535
    cidr: str | None = None  # to or from these addresses
    group_uid: str | None = None  # to or from members of this group; without either, any peer


class AllocatedGroup(msgspec.Struct, kw_only=True, frozen=True):
    name: str
    uid: str
    ingress: list[AllocatedRule] = []
    egress: list[AllocatedRule] = []


class AllocatedGpu(msgspec.Struct, kw_only=True, frozen=True):
    index: int  # index in its node's report
    share: int  # thousandths of the GPU
    address: str = ""  # PCI address, if the workload has the whole GPU and its node reports it


class HealthCheck(msgspec.Struct, kw_only=True, frozen=True):
    command: Annotated[list[Word], field("Command to run in the container; exit code 0 is healthy", change="restart")]
    interval: Annotated[float, field("Time between checks", change="restart", quantity="duration")] = 30.0
    timeout: Annotated[float, field("Timeout of one check", change="restart", quantity="duration")] = 5.0
    retries: Annotated[
        int, field("Failures in a row that make the container unhealthy", change="restart", ge=1, le=100)
    ] = 3
    start_period: Annotated[
        float, field("Time after a start in which failures don't count", change="restart", quantity="duration")
    ] = 0.0
    on_unhealthy: Annotated[
        Literal["nothing", "restart"],
        field("restart: end the container; its restart policy decides what follows", change="restart"),
    ] = "nothing"


class AllocatedContainer(msgspec.Struct, kw_only=True, frozen=True):
    """Needs of a container from its node beside what every workload has, as in its spec: ``mounts`` name its volumes."""

    image: str
    command: list[str] = []
    args: list[str] = []
    env: dict[str, str] = {}
    mounts: list[str] = []
    user: str = ""
    read_only: bool = False
    add_capabilities: list[str] = []
    drop_capabilities: list[str] = []
    pids: int = 1024
    isolation: Literal["container", "vm"] = "container"
    health_check: HealthCheck | None = None
    registry_secret: str = ""
    pulls: int = 0
    env_secrets: dict[str, str] = {}


class AllocationSpec(msgspec.Struct, kw_only=True):
    node: str
    node_uid: str
    workload: Ref
    workload_generation: int
    incarnation: int
    # lost: its node was lost and its guest surely ended, so the workload may have another place (decision 0535)
    role: Literal["active", "source", "target", "reserved", "lost"] = "active"
    desired: Desired = "run"
    desired_count: int = 0  # how often ``desired`` has changed: a report with another count is of an earlier value
    restart_generation: int = 0  # the workload's counter of starts: a report with a lower one calls for a fresh boot
    resources: Resources
    runtime: str = "qemu"
    machine: Literal["q35", "microvm"] = "q35"
    requested_cpu_model: str = "common"  # the VM's spec.cpu_model, from which ``cpu_model`` was chosen
    cpu_model: str = ""  # "": all that its node has
    image: AllocatedImage | None = None  # of a machine's root disk, or of a container if weft holds it
    volumes: list[AllocatedVolume] = []
    nics: list[AllocatedNic] = []
    groups: list[AllocatedGroup] = []  # security groups, kept current; their members are in endpoints
    user_data: str = ""
    ssh_keys: list[str] = []
    users: list[str] = []
    firmware: Literal["auto", "bios", "uefi"] = "auto"
    iso: AllocatedImage | None = None
    screen: Literal["auto", "yes", "no"] = "auto"
    boot: Boot = "cold"  # of a VM: how it starts first
    health_check: HealthCheck | None = None  # of a VM that tests a backup; no command: whether it answers
    restart: Literal["always", "on-failure", "never"] = "on-failure"
    grace_seconds: float = 20.0
    waits_for: str | None = None  # comma-separated names of allocations that must be gone first, or suspended for it
    held_by: str | None = None  # a gate that must be open
    memberships: list[str] = []  # affinity groups that it is a member of
    extras: dict[str, int] = {}  # amounts of its node's declared resources
    gpus: list[AllocatedGpu] = []
    migration: AllocatedMigration | None = None
    pool: str = LOCAL  # pool of its root disk
    pool_id: str = ""  # storage of that pool; if the node's pool has another storage now, its disks are elsewhere
    storage: AllocatedDiskRelocation | None = None
    back_from: list[str] = []  # keys of its last migrations whose targets never ran it
    container: AllocatedContainer | None = None  # of a container; the fields of machines are meaningless then
    once: bool = False
    preemptible: bool = False
    lease: AllocatedLease | None = None  # None: it has its place for good
    snapshots: list[AllocatedSnapshot] = []  # to take now
    origin: AllocatedOrigin | None = None
    slot: str | None = None  # name of the reservation's allocation whose cores, memory and GPUs it takes
    hostname: str = ""  # what its guest and its networks call it; "": the workload's name
    instance: str = ""  # by which its guest's first boot knows it; "": the workload's uid
    # begin: its node shall find out whether it can guard it; hold: it runs only while its cluster is known to be primary.
    guard: Literal["", "begin", "hold"] = ""
    # Odd: its guard ends it once its node's heartbeats are confirmed no more. Even: it doesn't. Each change makes it grow.
    loss_guard: int = 0
    loss_after: float = (
        0.0  # seconds by which that is later, on a node with autonomy; each change makes ``loss_guard`` grow
    )
    # Uids of its workload's lost allocations, newest first, with whose root disk, in its own pool, it goes on if that is there.
    continues: list[str] = []
    replicated: bool = False  # a copy of it may have been promoted at another cluster while this node was away
    asked_ports: list[int] = []  # of the guest, TCP: its node tries them all the time, for an update of the VM


class Step(msgspec.Struct, kw_only=True, frozen=True):
    """One step of bringing it up, for people who watch: image, disk, network, boot."""

    name: str
    state: Literal["doing", "done", "failed"]
    detail: str = ""
    seconds: float = 0.0  # that it took, once it is done


class AllocationReport(msgspec.Struct, kw_only=True):
    incarnation: int = 0
    state: AllocationPhase = "pending"
    desired_count: int | None = None  # of the spec that this reports on; None from an older agent
    generation: int | None = None  # the allocation's generation that this reports on; None from an older agent
    restart_generation: int = 0  # the counter of starts of the present run
    ready: bool | None = None
    boot_id: str | None = None
    accelerator: str | None = None
    started_at: float | None = None
    restarts: int = 0  # also of a VM's process, counted by the VM since its boot
    has: Resources | None = None  # what the running machine has; None: nothing runs, or it is unknown
    resize_limits: dict[str, int] | None = None  # see WorkloadStatus
    live_bar: str = ""  # why the running guest can migrate only while it stands still; "" if it can do so live
    outdated: bool = False  # the running guest's program, like QEMU, was upgraded since it started
    image: str = ""  # the digest of a container's image, once it has had one
    fitted: int = 0  # the allocation's generation that the machine matches
    health: Literal["", "starting", "healthy", "unhealthy"] = (
        ""  # of a running container with a check, and of a VM that says how its process is
    )
    health_message: str = ""
    set_up: Literal["", "running", "done", "failed"] = ""  # of a running VM that was given something for its first boot
    set_up_message: str = ""
    reason: str = ""
    message: str = ""
    steps: list[Step] = []
    migration: MigrationReport | None = None
    ended: bool = False  # the workload has ended, and doesn't restart by itself
    exit_code: int | None = None  # of the ended workload; None: unknown
    snapshots: list[SnapshotReport] = []  # of the spec's
    restored: int = 0  # generation of the origin that the disks come from
    guarded: int = 0  # the spec's ``loss_guard`` that its node's guard carries out
    to_begin: bool = False  # no guest has begun from the snapshot in its origin yet
    readiness: dict[
        str, ReadinessReport
    ] = {}  # of a running one, by the uid of each service that it has been asked for, and by ``name_port``


class EndedBy(msgspec.Struct, kw_only=True, frozen=True):
    """Evidence that a guest of a lost node runs no more."""

    # power: its machine was off, read back; person: confirmed by people; guard: its time ran out there
    by: Literal["power", "person", "guard"]
    at: float  # when that was certain, in seconds since 1970
    message: str = ""


class AllocationStatus(msgspec.Struct, kw_only=True):
    ended_by: EndedBy | None = None  # of one that is lost


def is_lost(spec: AllocationSpec) -> bool:
    """Whether its workload has been freed from it, since its node was lost."""
    return spec.role == "lost"


def is_held(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether its node has reported that its guard holds it, so that it ends in time if the node is lost."""
    return ends_if_lost(spec) and report.guarded == spec.loss_guard


def ends_if_lost(spec: AllocationSpec) -> bool:
    """Whether its node ends it once the servers confirm the node's heartbeats no more."""
    return spec.loss_guard % 2 == 1


def needs_guard(spec: AllocationSpec) -> bool:
    """Whether its guest may start only while its node's guard lets it."""
    return spec.guard == "hold" or ends_if_lost(spec)


def set_loss_guard(spec: AllocationSpec, *, on: bool, after: float) -> AllocationSpec:
    """``spec`` with its guard of lost nodes switched; ``after``: its node's autonomy, in seconds."""
    after = after if on else 0.0
    if (ends_if_lost(spec), spec.loss_after) == (on, after):
        return spec
    number = spec.loss_guard + (1 if ends_if_lost(spec) != on else 2)
    return msgspec.structs.replace(spec, loss_guard=number, loss_after=after)


def is_current(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether ``report`` is of ``desired`` in ``spec``, not of an earlier value: its guest may have been started since."""
    return report.desired_count in (None, spec.desired_count)


def is_at_rest(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether nothing of it runs on its node, as desired, and nothing will: the node has reported on this very spec."""
    stopped = report.state == "stopped" and report.incarnation >= spec.incarnation and is_current(spec, report)
    return stopped and spec.desired == "stop"


def set_desired(spec: AllocationSpec, desired: Desired) -> AllocationSpec:
    if desired == spec.desired:
        return spec
    return msgspec.structs.replace(spec, desired=desired, desired_count=spec.desired_count + 1)


def come_back(spec: AllocationSpec, key: str) -> AllocationSpec:
    """``spec`` as the workload's own place again, noting that the target of migration ``key`` never ran it."""
    known = [*(former for former in spec.back_from if former != key), key][-MOST_BACK_FROM:]
    return msgspec.structs.replace(spec, role="active", migration=None, back_from=known)


def has_left_cluster(report: AllocationReport) -> bool:
    """Whether its node reports that the node of another cluster took its guest over for good."""
    return (report.reason, report.state) == (LEFT_CLUSTER, "stopped")


def find_unknown_departure(spec: AllocationSpec, report: AllocationReport, known: str = "") -> MigrationReport | None:
    """The report of the migration by which its guest was handed over to another cluster, though the store, which was restored,
    knows of none; None for all others. While its node tries to break that off it says no reason; once it has said that it can't,
    of the migration ``known``, that holds."""
    found = report.migration
    if spec.role != "active" or spec.migration is not None or found is None or not names_other_cluster(found.peer):
        return None
    said = bool(report.reason) or found.key == known
    return found if said and found.phase == "handedOver" and found.key not in spec.back_from else None


def allocation_name(node_uid: str, uid: str) -> str:
    """Node first, so that a node's allocations are one prefix."""
    return f"{node_uid}.{uid}"


def list_digests(spec: AllocationSpec) -> list[str]:
    """The images that an allocation needs on its node."""
    return [image.sha256 for image in (spec.image, spec.iso) if image is not None]


def image_of(spec: AllocationSpec) -> str:
    """The name of the Image that it runs, or a container's reference of one in a registry; "" if it has none."""
    if spec.image is not None:
        return spec.image.name
    return spec.container.image if spec.container is not None else ""


def registry_secret_of(spec: AllocationSpec) -> str:
    """The secret with the credentials for its image's registry; "" if it has none."""
    return spec.container.registry_secret if spec.container is not None else ""


def list_secrets(spec: AllocationSpec) -> dict[str, frozenset[str]]:
    """The secrets of its project that an allocation names, and of each the keys that its variables need; a registry's secret
    needs none."""
    container = spec.container
    if container is None:
        return {}
    found: dict[str, frozenset[str]] = {container.registry_secret: frozenset()} if container.registry_secret else {}
    for secret, _, key in (place.partition("/") for place in container.env_secrets.values()):
        found[secret] = found.get(secret, frozenset()) | {key}
    return found


def list_disks(spec: AllocationSpec) -> dict[str, tuple[str, str]]:
    """The disks of an allocation, ROOT or a volume's uid, and of each the pool and the storage that this is."""
    return {ROOT: (spec.pool, spec.pool_id)} | {one.uid: (one.pool, one.pool_id) for one in spec.volumes}


def is_restoring(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether its disks are about to go back to a snapshot in place, and its node hasn't reported that they have."""
    return spec.origin is not None and spec.origin.generation not in (0, report.restored)


def list_snapshots_to_take(spec: AllocationSpec, report: AllocationReport) -> list[AllocatedSnapshot]:
    """The snapshots that its node is about to take, with the one that a restore in place keeps."""
    keeps = spec.origin.keeps if spec.origin is not None and is_restoring(spec, report) else None
    return [*spec.snapshots, *([keeps] if keeps is not None else [])]


def account(spec: AllocationSpec, report: AllocationReport) -> Resources:
    """Account for what an allocation takes from its node: all of it for as long as it exists, stopped or not, so that a start can't
    fail for lack of capacity; and what its machine still has after a resize, until it gives that up. What runs once takes nothing
    after its end; a lost one takes its disk, as does a lease that is over, or suspended for another workload. In a slot of a
    reservation only the disk is taken of the node: the slot has taken the rest."""
    within = account_within(spec, report)
    return within if spec.slot is None else Resources(disk=within.disk)


def account_within(spec: AllocationSpec, report: AllocationReport) -> Resources:
    """Account for what an allocation takes, of its node or of its slot."""
    asked, has = spec.resources, report.has
    if has_ended_for_good(spec, report):
        return Resources()
    if is_lost(spec):
        return Resources(disk=asked.disk)
    if is_lease_over(spec, report) or has_given_way(spec, report):
        return Resources(disk=asked.disk)
    if has is None:
        return asked
    return Resources(cpu=max(asked.cpu, has.cpu), memory=max(asked.memory, has.memory), disk=max(asked.disk, has.disk))


def has_ended_for_good(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether nothing of it will ever run again."""
    return spec.once and report.ended and report.incarnation >= spec.incarnation


def is_lease_over(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether its guest was ended with its lease; it may be on its way out since."""
    over = report.reason == LEASE_ENDED and report.state in ("stopped", "stopping", "released")
    return spec.lease is not None and over and report.incarnation >= spec.incarnation


def has_given_way(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether its cores and memory are free for others: its node has reported that it is suspended for another workload, or as
    planned; it may be on its way out since."""
    suspended = spec.lease is not None and (spec.lease.suspension is not None or bool(spec.lease.pauses))
    rests = report.reason == PREEMPTED and report.state in ("suspended", "stopped", "stopping", "released")
    return suspended and rests and report.incarnation >= spec.incarnation


def has_nothing_to_migrate(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether nothing of it runs on its node, nor would elsewhere, unless somebody starts it: it has ended for good, or is a
    container that failed and isn't tried again. A VM that failed has a disk."""
    failed = report.ended and report.state == "failed" and report.incarnation >= spec.incarnation
    return has_ended_for_good(spec, report) or (failed and spec.container is not None)


def _render_state(obj: Any) -> str:
    ended_by = (obj.get("status") or {}).get("ended_by")
    return f"lost ({ended_by['by']})" if ended_by else str((obj.get("report") or {}).get("state") or "pending")


def _workload(obj: Any) -> str:
    ref = obj["spec"]["workload"]
    return f"{ref['kind']}/{ref['name']}"


ALLOCATIONS_BY_WORKLOAD = Index("allocations by workload")  # without reservations and lost ones
LOST_BY_WORKLOAD = Index("lost allocations by workload")
RESERVATIONS_BY_MIGRATION = Index("reservations by migration")
ALLOCATIONS_BY_NODE = Index("allocations by node")
ALLOCATIONS_BY_VOLUME = Index("allocations by volume")
ALLOCATIONS_BY_WAITED = Index("allocations by those that they wait for")
SLOTS_BY_RESERVATION = Index("slots by reservation")
ALLOCATIONS_BY_SLOT = Index("allocations by slot")
PREEMPTIBLE = Index("preemptible allocations by node")
PREEMPTIBLE_ANYWHERE = "*"


def has_begun(report: AllocationReport) -> bool:
    """Whether its guest has its disks, also those that come from a snapshot."""
    return report.state in ("running", "stopped", "suspended") and not report.to_begin


def is_reservation(allocation: Stored) -> bool:
    """Whether it only reserves capacity, for a Migration that is planned, or for a Reservation."""
    return allocation.spec(AllocationSpec).role == "reserved"


def is_slot(spec: AllocationSpec) -> bool:
    """Whether it is a slot of a Reservation."""
    return spec.role == "reserved" and spec.workload.kind == "reservation"


def slot_key(spec: AllocationSpec) -> str:
    """The key of the slot that an allocation is in."""
    assert spec.slot is not None
    return object_key("allocation", None, spec.slot)


def _workload_of(allocation: Stored, *, lost: bool) -> tuple[str, ...]:
    spec = allocation.spec(AllocationSpec)
    return () if spec.role == "reserved" or is_lost(spec) != lost else (spec.workload.uid,)


def _slot_of(allocation: Stored) -> tuple[str, ...]:
    spec = allocation.spec(AllocationSpec)
    return (spec.workload.uid,) if is_slot(spec) else ()


def _user_of(allocation: Stored) -> tuple[str, ...]:
    slot = allocation.spec(AllocationSpec).slot
    return (slot,) if slot is not None else ()


def _reserved_for(allocation: Stored) -> tuple[str, ...]:
    """The uid of the Migration that a reservation is for."""
    migration = allocation.spec(AllocationSpec).migration
    return (read_migration(migration.key),) if migration is not None and is_reservation(allocation) else ()


def _preemptible(allocation: Stored) -> tuple[str, ...]:
    spec = allocation.spec(AllocationSpec)
    if spec.slot is not None or is_lost(spec):
        return ()  # what it takes is kept for its reservation
    leased = spec.lease is not None and spec.lease.preemptible
    return (spec.node_uid, PREEMPTIBLE_ANYWHERE) if spec.preemptible or leased else ()


def _waited_for(allocation: Stored) -> list[str]:
    names = allocation.spec(AllocationSpec).waits_for
    return names.split(",") if names else []


ALLOCATION = Kind(
    name="allocation",
    plural="allocations",
    title="allocation",
    summary="A workload's allocation on a node",
    scope="fabric",
    spec=AllocationSpec,
    status=AllocationStatus,
    report=AllocationReport,
    indexes={
        ALLOCATIONS_BY_WORKLOAD: lambda item: _workload_of(item, lost=False),
        LOST_BY_WORKLOAD: lambda item: _workload_of(item, lost=True),
        RESERVATIONS_BY_MIGRATION: _reserved_for,
        ALLOCATIONS_BY_NODE: lambda item: (item.spec(AllocationSpec).node_uid,),
        ALLOCATIONS_BY_VOLUME: lambda item: [volume.uid for volume in item.spec(AllocationSpec).volumes],
        SLOTS_BY_RESERVATION: _slot_of,
        ALLOCATIONS_BY_SLOT: _user_of,
        PREEMPTIBLE: _preemptible,
        ALLOCATIONS_BY_WAITED: _waited_for,
    },
    access=Access(
        readers="fabric",
        writer="fabric",
        status_writer="loss",
        reported_by_node=True,
        name_begins="node",
        node_reads="placed",
    ),
    display=Display(
        columns=(
            NAME,
            Column("WORKLOAD", _workload),
            Column("NODE", text("spec.node")),
            Column("INCARNATION", text("spec.incarnation"), align="right"),
            Column("DESIRED", text("spec.desired")),
            Column("STATE", _render_state),
            AGE,
        ),
    ),
    lifetime=Lifetime(finalizers=("node",)),
)
