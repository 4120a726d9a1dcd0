"""Allocation: one workload's place on one node, in one incarnation. The scheduler writes spec, the node reports, and a
workload's status is folded from these. The node acts on nothing but its own allocations, so all it needs is in here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.record import Column, Index, Kind, Stored
from weft.objects.identity import Ref
from weft.objects.schema import field

Word = Annotated[str, field("", max_length=4096, shown="word")]
Desired = Literal["run", "stop", "suspend"]
LOCAL = "local"  # the pool that every node has
ROOT = "root"  # a root disk, where disks are named; volumes are by their uid
# pending: not begun; preparing: image, disks, network; starting: the machine runs, the guest hasn't answered; released:
# everything of it is gone from the node.
MOST_BACK_FROM = 16
AllocationPhase = Literal[
    "pending", "preparing", "starting", "running", "stopping", "suspended", "stopped", "failed", "released"
]


class Resources(msgspec.Struct, kw_only=True, frozen=True):
    """``cpu`` in cores, the rest in bytes."""

    cpu: float = 0.0
    memory: int = 0
    disk: int = 0


class AllocatedImage(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """``digest`` (sha256:…) is that of the container image that the file holds, if it does."""

    name: str
    uid: str
    sha256: str
    size: int
    url: str
    digest: str = ""


class AllocatedVolume(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """``pool`` and ``pool_id`` as of the root disk: see AllocationSpec."""

    name: str
    uid: str
    size: int
    pool: str = LOCAL
    pool_id: str = ""


class AllocatedNic(msgspec.Struct, kw_only=True, frozen=True):
    """One NIC with all its network's facts that never change. ``uid`` is its endpoint's."""

    uid: str
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
    """One thing that a security group allows: to or from ``cidr``, or the members of a group; everybody if neither."""

    protocol: Literal["tcp", "udp", "icmp", "any"]
    first_port: int = 0
    last_port: int = 65535
    cidr: str | None = None
    group_uid: str | None = None


class AllocatedGroup(msgspec.Struct, kw_only=True, frozen=True):
    name: str
    uid: str
    ingress: list[AllocatedRule] = []
    egress: list[AllocatedRule] = []


class AllocatedGpu(msgspec.Struct, kw_only=True, frozen=True):
    """Thousandths (``share``) of the GPU with this ``index`` in its node's report. ``address`` is its place on the PCI bus
    where all of it is the workload's, and its node said so."""

    index: int
    share: int
    address: str = ""


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
    """What a container's node needs beside what every workload has, as in its spec: ``mounts`` name its volumes."""

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


class PastMigration(msgspec.Struct, kw_only=True, frozen=True):
    """How far a migration that has ended came from its forecast, before any correction of that."""

    mode: str
    duration_seconds: float  # as it was
    duration_ratio: float  # as it was, as a multiple of the forecast
    pause_seconds: float = 0.0  # as it was; 0: nobody saw it
    pause_more_seconds: float = 0.0  # longer than forecast
    bytes_ratio: float  # as they were, as a multiple of the forecast
    weight: float = 1.0  # how much it counts for the next one


class MigrationLesson(msgspec.Struct, kw_only=True, frozen=True):
    """What earlier migrations have taught: what the path carries (0: nothing is known), and how they went, the newest first."""

    path_bytes_per_second: int = 0
    past: tuple[PastMigration, ...] = ()


class AllocatedMigration(msgspec.Struct, kw_only=True, frozen=True):
    """The migration that this allocation is an end of, as its role says. ``key`` is the Migration's uid; ``peer_uid`` is the other
    node's, so the name that its certificate must bear; ``address`` (source) is the target's door, once it waits there;
    ``never_ran`` and ``taken_over`` (source): the target's word is here that the guest never ran there, or that it does.
    ``shared`` are the disks (ROOT, or volumes' uids) that lie where both nodes see them: they stay where they are. ``image`` is
    the digest of a container's image: it runs the same at the target, whatever its tag has come to mean. ``rests``: as what the
    guest has ended by itself, so that it isn't begun again there. ``saves``: in place of being stopped its processes are saved,
    and go on at the target; if it ``may``, one that can't be is stopped."""

    key: str
    mode: Literal["live", "cold"] = "live"
    peer: str
    peer_uid: str
    peer_allocation: str
    address: str = ""
    bytes_per_second: int = 0  # at most; 0 is as fast as it goes
    node_bytes_per_second: int = 0  # at most, for all moves from and to this side's node together; 0 likewise
    peer_bytes_per_second: int = 0  # as much of the other node's
    pause_ms: int = 300  # the longest pause aimed at
    never_ran: bool = False
    taken_over: bool = False
    lesson: MigrationLesson | None = None  # source only
    shared: tuple[str, ...] = ()
    image: str = ""
    rests: str = ""
    saves: Literal["", "may", "must"] = ""


def read_migration(key: str) -> str:
    """The uid of the Migration that a key of a try is of."""
    return key.partition(".")[0]


def limits_of(move: AllocatedMigration) -> tuple[int, int, int]:
    """All that keeps it slow, in bytes a second; 0 doesn't."""
    return move.bytes_per_second, move.node_bytes_per_second, move.peer_bytes_per_second


class AllocatedDiskRelocation(msgspec.Struct, kw_only=True, frozen=True):
    """One disk (ROOT, or a volume's uid) that is to move to another pool of the node. ``key`` is the Migration's uid."""

    key: str
    disk: str
    pool: str
    pool_id: str
    bytes_per_second: int = 0
    cancel: bool = False


class AllocationSpec(msgspec.Struct, kw_only=True):
    """``restart_generation`` is the workload's start counter: a report with a lower one asks for a fresh boot. ``waits_for`` names
    allocations, with commas, to be gone first; ``held_by`` a gate that must be open; ``memberships`` are the affinity groups it
    counts in; ``extras`` what it takes of resources that its node declares. ``pool`` is where its root disk lies, and
    ``pool_id`` which storage that is: if the node's pool is another one by now, its disks are elsewhere. ``back_from`` are the
    keys of its last migrations whose targets surely never ran it. ``desired_count`` is how often ``desired`` has changed: what a
    node said of an earlier value says nothing of this one, though both may read the same."""

    node: str
    node_uid: str
    workload: Ref
    workload_generation: int
    incarnation: int
    role: Literal["active", "source", "target", "reserved"] = "active"
    desired: Desired = "run"
    desired_count: int = 0
    restart_generation: int = 0
    resources: Resources
    runtime: str = "qemu"
    machine: Literal["q35", "microvm"] = "q35"
    requested_cpu_model: str = "common"  # what of the VM's spec ``cpu_model``, the one it gets, was chosen for
    cpu_model: str = ""  # "" is all that its node has
    image: AllocatedImage | None = None  # of a machine's root disk; or a container's, that the fabric holds
    volumes: list[AllocatedVolume] = []
    nics: list[AllocatedNic] = []
    groups: list[AllocatedGroup] = []  # kept current while it runs; of other VMs' membership the endpoints tell
    user_data: str = ""
    ssh_keys: list[str] = []
    users: list[str] = []
    firmware: Literal["auto", "bios", "uefi"] = "auto"
    iso: AllocatedImage | None = None
    screen: Literal["auto", "yes", "no"] = "auto"
    restart: Literal["always", "on-failure", "never"] = "on-failure"
    grace_seconds: float = 20.0
    waits_for: str | None = None
    held_by: str | None = None
    memberships: list[str] = []
    extras: dict[str, int] = {}
    gpus: list[AllocatedGpu] = []
    move: AllocatedMigration | None = None
    pool: str = LOCAL
    pool_id: str = ""
    storage: AllocatedDiskRelocation | None = None
    back_from: list[str] = []
    container: AllocatedContainer | None = None  # of a container; what is a machine's own in here says nothing then
    once: bool = False
    preemptible: bool = False


class Step(msgspec.Struct, kw_only=True, frozen=True):
    """One step of bringing it up, for people who watch: image, disk, network, boot."""

    name: str
    state: Literal["doing", "done", "failed"]
    detail: str = ""


class PlannedMigration(msgspec.Struct, kw_only=True, frozen=True):
    """How a move is to go, and why: what the source makes of its guest's load and of the path. The factors are what past
    moves have corrected it by: the figures are already multiplied. ``limit_bytes_per_second``: what people, of this move or of
    either node, kept it to; 0: nothing."""

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
    limit_bytes_per_second: int = 0
    duration_factor: float = 1.0
    pause_factor: float = 1.0
    bytes_factor: float = 1.0


MigrationReportPhase = Literal[
    "preparing", "waiting", "moving", "switching", "handedOver", "takenOver", "abandoned", "failed"
]


class MigrationReport(msgspec.Struct, kw_only=True, frozen=True):
    """What one side says of the move ``key``. ``address`` (target, from waiting on): host:port of its door for this move;
    ``sent_bytes`` are those on the wire, ``pause_ms`` the actual one, from standing still to running again."""

    key: str
    phase: MigrationReportPhase
    address: str = ""
    reason: str = ""
    message: str = ""
    plan: PlannedMigration | None = None
    sent_bytes: int = 0
    total_bytes: int = 0
    remaining_bytes: int = 0
    passes: int = 0
    bytes_per_second: int = 0
    dirty_bytes_per_second: int = 0
    pause_ms: int = 0
    elapsed_ms: int = 0


class AllocationReport(msgspec.Struct, kw_only=True):
    incarnation: int = 0
    state: AllocationPhase = "pending"
    desired_count: int | None = None  # of the wish that this is said of; None by an agent that doesn't count
    restart_generation: int = 0  # the start counter that the present run satisfies
    ready: bool | None = None
    boot_id: str | None = None
    accelerator: str | None = None
    started_at: float | None = None
    restarts: int = 0  # also of a VM's process, by the VM itself since its boot
    has: Resources | None = None  # what the running machine has now; None: nothing runs, or it can't be told
    room: dict[str, int] | None = None  # see WorkloadStatus
    image: str = ""  # the digest of a container's image, once it has had one
    fitted: int = 0  # the allocation's generation that the machine was brought to last
    health: Literal["", "starting", "healthy", "unhealthy"] = (
        ""  # of a running container with a check, and of a VM that says how its process is
    )
    health_message: str = ""
    reason: str = ""
    message: str = ""
    steps: list[Step] = []
    move: MigrationReport | None = None
    ended: bool = False  # what ran has ended, and isn't started again by itself
    exit_code: int | None = None  # then; None: nobody saw it


class AllocationStatus(msgspec.Struct, kw_only=True):
    pass


def has_heard(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether ``report`` is said of the wish in ``spec``: not of one before, since when its guest may have been started."""
    return report.desired_count in (None, spec.desired_count)


def is_at_rest(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether nothing of it runs on its node, as is wished, and nothing will: the node has said so of this very wish."""
    told = report.state == "stopped" and report.incarnation >= spec.incarnation and has_heard(spec, report)
    return told and spec.desired == "stop"


def set_desired(spec: AllocationSpec, desired: Desired) -> AllocationSpec:
    if desired == spec.desired:
        return spec
    return msgspec.structs.replace(spec, desired=desired, desired_count=spec.desired_count + 1)


def come_back(spec: AllocationSpec, key: str) -> AllocationSpec:
    """``spec`` as the workload's own place, with the word that the target of the move ``key`` never ran it."""
    known = [*(former for former in spec.back_from if former != key), key][-MOST_BACK_FROM:]
    return msgspec.structs.replace(spec, role="active", move=None, back_from=known)


def allocation_name(node_uid: str, uid: str) -> str:
    """Node first, so that a node's allocations are one prefix."""
    return f"{node_uid}.{uid}"


def list_digests(spec: AllocationSpec) -> list[str]:
    """The images that an allocation needs on its node."""
    return [image.sha256 for image in (spec.image, spec.iso) if image is not None]


def list_secrets(spec: AllocationSpec) -> dict[str, frozenset[str]]:
    """The secrets of its project that an allocation names, and of each the keys that its variables need; one that opens its
    registry needs none for that."""
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


def account(spec: AllocationSpec, report: AllocationReport) -> Resources:
    """What an allocation takes from its node: all of it for as long as it exists, stopped or not, so that a start can't
    fail for want of room; and what its machine was to give up, until it has. What runs once takes nothing when it has ended."""
    asked, has = spec.resources, report.has
    if has_ended_for_good(spec, report):
        return Resources()
    if has is None:
        return asked
    return Resources(cpu=max(asked.cpu, has.cpu), memory=max(asked.memory, has.memory), disk=max(asked.disk, has.disk))


def has_ended_for_good(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether nothing of it will ever run again."""
    return spec.once and report.ended and report.incarnation >= spec.incarnation


def has_nothing_to_move(spec: AllocationSpec, report: AllocationReport) -> bool:
    """Whether nothing of it runs on its node, nor would elsewhere, unless somebody starts it: it has ended for good, or is a
    container that failed and isn't tried again. A VM that failed has a disk."""
    failed = report.ended and report.state == "failed" and report.incarnation >= spec.incarnation
    return has_ended_for_good(spec, report) or (failed and spec.container is not None)


def _workload(obj: Any) -> str:
    ref = obj["spec"]["workload"]
    return f"{ref['kind']}/{ref['name']}"


ALLOCATIONS_BY_WORKLOAD = Index("allocations by workload")  # without reservations
RESERVATIONS_BY_MIGRATION = Index("reservations by migration")
ALLOCATIONS_BY_NODE = Index("allocations by node")
ALLOCATIONS_BY_VOLUME = Index("allocations by volume")
ALLOCATIONS_BY_WAITED = Index("allocations by those that they wait for")
PREEMPTIBLE = Index("preemptible allocations by node")
PREEMPTIBLE_ANYWHERE = "*"


def is_reservation(allocation: Stored) -> bool:
    """Whether it only reserves capacity, for a Migration that is planned."""
    return allocation.spec(AllocationSpec).role == "reserved"


def _reserved_for(allocation: Stored) -> tuple[str, ...]:
    """The uid of the Migration that a reservation is for."""
    migration = allocation.spec(AllocationSpec).move
    return (read_migration(migration.key),) if migration is not None and is_reservation(allocation) else ()


def _preemptible(allocation: Stored) -> tuple[str, ...]:
    spec = allocation.spec(AllocationSpec)
    return (spec.node_uid, PREEMPTIBLE_ANYWHERE) if spec.preemptible else ()


def _waited_for(allocation: Stored) -> list[str]:
    names = allocation.spec(AllocationSpec).waits_for
    return names.split(",") if names else []


ALLOCATION = Kind(
    name="allocation",
    plural="allocations",
    title="allocation",
    summary="A workload's allocation on a node",
    scope="fabric",
    writer="fabric",
    spec=AllocationSpec,
    status=AllocationStatus,
    report=AllocationReport,
    reported_by_node=True,
    finalizers=("node",),
    indexes={
        ALLOCATIONS_BY_WORKLOAD: lambda item: () if is_reservation(item) else (item.spec(AllocationSpec).workload.uid,),
        RESERVATIONS_BY_MIGRATION: _reserved_for,
        ALLOCATIONS_BY_NODE: lambda item: (item.spec(AllocationSpec).node_uid,),
        ALLOCATIONS_BY_VOLUME: lambda item: [volume.uid for volume in item.spec(AllocationSpec).volumes],
        PREEMPTIBLE: _preemptible,
        ALLOCATIONS_BY_WAITED: _waited_for,
    },
    columns=(
        NAME,
        Column("WORKLOAD", _workload),
        Column("NODE", text("spec.node")),
        Column("INCARNATION", text("spec.incarnation"), align="right"),
        Column("DESIRED", text("spec.desired")),
        Column("STATE", text("report.state", "pending")),
        AGE,
    ),
)
