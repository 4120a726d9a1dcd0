"""Node: a machine that runs guests. People set its role and may cordon it; it reports what it has; the nodes controller folds the
rest. Its place (zone, rack, location) is in labels; a label wins over a fact of the same name."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from weft.kinds.fields.taint import check_taints
from weft.kinds.orders import OrderReports
from weft.kinds.parts.node.columns import NODE_COLUMNS, NodeType, is_drained
from weft.kinds.parts.node.loss import GuardInput, confirm_off, pause_guard
from weft.kinds.parts.node.power import (
    SWITCHED,
    PowerInput,
    PowerOrder,
    PowerReading,
    check_power,
    check_secret_of_bmc,
    describe_node_progress,
    find_power_failure,
    find_power_rights,
    list_secrets,
    order_power,
)
from weft.kinds.parts.stream_verbs import METRICS, NODE_LOGS
from weft.kinds.record import (
    Access,
    Admission,
    Display,
    Goal,
    Index,
    Kind,
    Lifetime,
    Object,
    Operation,
    Reference,
    Stored,
    Verb,
    uid_of,
)
from weft.objects.envelope import take_from_spec
from weft.objects.errors import InvalidInput
from weft.objects.identity import object_key
from weft.objects.schema import field, suggest, words

KEEPS_VOLUMES = "kept-volumes"  # capability: and volumes of it that went on elsewhere from an earlier state
KEEPS_DISKS = "kept-disks"  # capability: of a guest that was placed elsewhere while it was away, it keeps the root disk
OVERCOMMITTED = ("cpu", "memory", "disk")
# Names with a meaning in expressions about nodes; a declared resource of that name would hide it.
_TAKEN = ("gpu", "gpus", "cost", "name", "uid", "type", "zone", "rack", "arch", "storage", "location", "hypervisor")
_RESOURCE = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?")
_DATUM = re.compile(r"[^\s,;]{1,100}")
_MOST_DECLARED = 64
LONGEST_AUTONOMY_SECONDS = 29 * 86400.0  # a certificate is renewed 30 days before its end

Amount = Annotated[int, field("", quantity="amount")]
Ratio = Annotated[float, field("", quantity="ratio")]
Cost = Annotated[float, field("", ge=0, le=1e9)]
Reason = Annotated[str, field("Reason, for people", max_length=200)]


class NodeSpec(msgspec.Struct, kw_only=True):
    type: Annotated[NodeType | None, field("Role of the node; if unset, gpu where it has GPUs, else cloud")] = None
    resources: Annotated[
        dict[str, Amount], field("Further resources of the node, by name: a count or a size (sriov=8, hugepages=16G)")
    ] = {}
    taints: Annotated[
        list[str], field("Taints, which workloads must tolerate to be placed here: NAME or NAME=VALUE")
    ] = []
    overcommit: Annotated[
        dict[str, Ratio], field("Overcommit factors of cpu, memory and disk (cpu=4); 1 where unset")
    ] = {}
    cost: Annotated[Cost | None, field("Cost per hour, in a unit of your choice")] = None
    data: Annotated[list[str], field("Pools and data sets near the node (ceph-pool:raw-data)")] = []
    migration_bandwidth: Annotated[
        int,
        field(
            "Limit on the transfer rate of all migrations from and to the node together; 0 means no limit",
            quantity="bytes",
            ge=0,
        ),
    ] = 0
    autonomy_seconds: Annotated[
        float,
        field(
            "How long the node may send no heartbeat before it counts as lost; until then nothing of it is replaced, freed or "
            "planned elsewhere",
            quantity="period",
            ge=0,
            le=LONGEST_AUTONOMY_SECONDS,
        ),
    ] = 0.0
    power: Annotated[
        str,
        field(
            "BMC of the machine: redfish://HOST[:PORT][/redfish/v1/Systems/ID] or ipmi://HOST[:PORT]", max_length=500
        ),
    ] = ""
    power_secret: Annotated[
        str,
        field(
            "Secret with the BMC's user and password, as PROJECT/NAME; and with the fingerprint of its certificate, if the "
            "server doesn't trust that"
        ),
    ] = ""
    devices_project: Annotated[
        str,
        field(
            "Project whose devices the node's gateway takes, and that gets those it finds; unset: default", name=True
        ),
    ] = ""


class NodeActions(msgspec.Struct, kw_only=True):
    cordoned: Annotated[bool, field("Place no new workloads here; running ones stay")] = False
    cordon_reason: Annotated[str, field("Reason for the cordon", max_length=200)] = ""
    drain: Annotated[bool, field("Migrate the node's workloads away")] = False
    drain_reason: Annotated[str, field("Reason for the drain", max_length=200)] = ""
    drain_not_before: Annotated[float | None, field("Earliest start of the drain", quantity="moment")] = None
    drain_not_after: Annotated[float | None, field("Latest start of a workload's migration", quantity="moment")] = None
    drain_force: Annotated[bool, field("Whether the drain waits for no disruption budget")] = False
    maintenance: Annotated[bool, field("Under maintenance: place no new workloads here")] = False
    maintenance_reason: Annotated[str, field("Reason for the maintenance", max_length=200)] = ""
    uncordoned_at: Annotated[
        float | None,
        field(
            "When people last ended a quarantine of the node; starts that failed before don't count", quantity="moment"
        ),
    ] = None
    power_to: Annotated[PowerOrder, field("Last order to the BMC")] = "status"
    power_orders: Annotated[int, field("Counter: each order to the BMC makes it grow", ge=0)] = 0
    power_ordered_at: Annotated[float, field("When the last order was given", quantity="moment")] = 0.0
    off_confirmed_contact: Annotated[str, field("The report's contact of when people confirmed that it is off")] = ""
    off_confirmed_at: Annotated[float, field("When they did", quantity="moment")] = 0.0
    guard_paused_until: Annotated[
        float, field("Until then no guest ends, or starts elsewhere, because the node isn't heard", quantity="moment")
    ] = 0.0


class NodeMarks(msgspec.Struct, kw_only=True, frozen=True):
    power_reading: Annotated[PowerReading | None, field("What the BMC of the machine said last")] = None


def find_devices_project(spec: NodeSpec) -> str:
    """The one project whose devices the node's gateway takes."""
    return spec.devices_project or "default"


class Quarantine(msgspec.Struct, frozen=True):
    """Quarantine of a node on which the starts of different workloads failed, and none succeeded."""

    since: float
    until: float  # from then on the node is on probation
    times: int = 1  # in a row, without a start that succeeded in between; each lasts longer
    workloads: int = 0  # whose starts failed
    on_probation: bool = False  # it gets workloads again; the first that starts ends the quarantine


class NodeStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Joining", "Ready", "Autonomous", "NotReady")] = (
        "Joining"  # without cordons, which are in the actions
    )
    message: str = ""
    allocated_cpu: float = 0.0
    allocated_memory: int = 0
    allocated_disk: int = 0
    promised_cpu: float = 0.0  # the most that leases which begin later hold at one time
    promised_memory: int = 0
    allocations: int = 0
    allocations_later: int = 0  # of these: whose lease begins later, so they take only their disk yet
    since: float = 0.0
    cpu_model: str = ""  # best one of all nodes that it can exchange guests with
    lost_contact: str = ""  # ``report.contact`` when it was lost: while they are equal, it hasn't been back
    lost_at: float | None = None  # when its heartbeats were missed first; None while it sends them
    autonomous_until: float | None = None  # of a silent node; if people ended its autonomy: when it would have ended
    quarantine: Quarantine | None = None
    newer_than: str = ""  # the oldest server's release, while the agent's is newer: it takes no new workloads


def is_quarantined(status: NodeStatus) -> bool:
    """Whether the node gets no workloads since starts failed there."""
    return status.quarantine is not None and not status.quarantine.on_probation


def find_cordon(asked: NodeActions, status: NodeStatus) -> str:
    """``cordoned``, ``quarantined``, ``newer than the servers``, or empty: why no new workloads are placed on a node that is
    ready."""
    if asked.cordoned:
        return "cordoned"
    return "quarantined" if is_quarantined(status) else "newer than the servers" if status.newer_than else ""


class Gpu(msgspec.Struct, frozen=True):
    """A GPU of the node."""

    model: str = ""
    memory: int = 0  # bytes; 0: its driver doesn't report it
    address: str = ""  # PCI address
    kept: str = ""  # why guests can't use it, and what to do about it


class NodeOsd(msgspec.Struct, frozen=True, omit_defaults=True):
    """An OSD of a Ceph pool, on the node's machine."""

    name: str
    total: int = 0
    used: int = 0  # rounded
    latency_ms: dict[str, float] = {}  # of what it did in the last half minute: write, read, replica, commit
    problem: str = ""  # why nothing is known of it


class NodePool(msgspec.Struct, frozen=True):
    """A place for disks that the node offers."""

    name: str
    id: str = ""  # id of the storage, equal on all nodes that share it; "": not usable now
    total: int = 0
    free: int = 0  # rounded, so that it changes rarely
    problem: str = ""  # why it can't be used
    driver: str = "directory"  # what it is
    osds: list[NodeOsd] = []


class NodeRuntime(msgspec.Struct, kw_only=True, frozen=True):
    """One of a node's runtime drivers."""

    name: str
    version: str = ""
    usable: bool = True  # if False, ``problems`` of the report has the reason
    kinds: list[str] = []  # kinds of workloads that it runs
    isolations: list[str] = []  # isolations that it supports
    checkpoint: str = ""  # yes: what it has saved can go on elsewhere; or why it cannot save running containers


class NodeSnapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """A snapshot that a node's pools keep."""

    uid: str
    size: int = 0  # bytes that only it takes up, with its memory
    memory: int = 0  # bytes of its memory
    pool_id: str = ""  # storage of its root disk


MOST_DEPARTED = 400  # endpoints in NodeReport.departed: with those beyond it is as if the node said nothing of them
MOST_DEPARTED_CHARACTERS = 100


def name_departure(service_uid: str, address: str, departure: int) -> str:
    """An endpoint that leaves, as NodeReport.departed names it; older servers and agents don't number departures (0)."""
    return f"{service_uid}/{address}" + (f"/{departure}" if departure else "")


class NodeReport(msgspec.Struct, kw_only=True):
    version: str = ""
    address: str = ""  # address on the underlay
    addresses: list[str] = []  # all that others may reach it by
    cpu: float = 0.0
    memory: int = 0
    disk: int = 0
    accelerator: str = ""
    hypervisor: str = ""
    kernel: str = ""
    machines: list[str] = []
    capabilities: list[str] = []
    problems: list[str] = []
    orphans: list[str] = []  # guests without an allocation: ``<allocation uid> <kind>/<project>/<name> <incarnation>``
    orphan_allocations: list[str] = []  # the node's own copies of their allocations: JSON ``{"uid", "spec"}``
    volumes: list[str] = []  # uids of volumes with data on the node
    snapshots: list[NodeSnapshot] = []
    epoch: str = ""  # of the allocation list behind ``orphans``: the part of a cursor before the colon
    images: list[str] = []  # sha256 of cached images
    booted: dict[str, str] = {}  # images with a booted machine, by uid: for what it is kept, or why there is none
    booting_memory: int = 0  # bytes that an image which boots for this takes now, beside allocations
    orders: OrderReports = OrderReports()  # what it was ordered to do beside its allocations
    boot_id: str = ""
    arch: str = ""
    cpu_models: list[str] = []  # CPU models for its guests, best first; equal names are equal CPUs
    gpus: list[Gpu] = []  # by index
    storage: str = ""  # type of its disks: nvme, ssd, hdd; "": unknown
    tpm: str = ""  # version
    sriov: int = 0  # number of virtual functions of its network cards
    numa: int = 0  # number of NUMA nodes
    echo_port: int = 0  # UDP port that answers other nodes' probes
    coordinate: list[float] = []  # network coordinate in ms: a position and, last, a height
    round_trips: dict[str, float] = {}  # round trips in ms, by uid of the peer
    pools: list[NodePool] = []
    runtimes: list[NodeRuntime] = []
    functions: dict[str, str] = {}  # by isolation of instances: yes, or why the node can't run them
    # SERVICE_UID/ADDRESS/DEPARTURE of endpoints that leave, and get no new connections from here any more; MOST_DEPARTED at most.
    departed: list[str] = []
    egress_endpoints: list[str] = []  # uids of the networks that functions reach from behind the node's address
    connections_percent: int = 0  # how full its table of connections is, in steps of 5; 0: not nearly
    sequence: str = ""  # PROCESS.NUMBER of the report that these facts came with, set by the server
    contact: str = ""  # another one each time that it has been heard again after a silence
    # Of workloads that are guarded here, by uid: ready (to hold it), held, or why it can't be held.
    guards: dict[str, str] = {}
    guard: str = ""  # yes, or why guests can't be guarded here; "": an agent that knows nothing of it
    reboot: str = (
        ""  # why the machine should be rebooted, such as for a newer kernel; "": it needn't, or weft can't tell
    )
    outdated: int = 0  # guests whose program, like QEMU, was upgraded since they started


class Orphan(msgspec.Struct, frozen=True):
    """A guest that no allocation explains."""

    uid: str  # its allocation's
    key: str  # of its workload
    incarnation: int


def pool_id(report: NodeReport, name: str) -> str:
    """The storage that a node's pool of that name is; empty if there is none, or none that can be used."""
    return next((pool.id for pool in report.pools if pool.name == name), "")


def read_orphan(text_: str) -> Orphan | None:
    """An entry of NodeReport.orphans, parsed; None if it doesn't name the workload."""
    words = text_.split()
    if len(words) != 3 or words[1].count("/") != 2 or not words[2].isdecimal():
        return None
    kind, project, name = words[1].split("/")
    return Orphan(words[0], object_key(kind, project, name), int(words[2]))


class CordonInput(msgspec.Struct):
    reason: Reason = ""


def _cordon(obj: Object, given: CordonInput) -> dict[str, Any]:
    return {"cordoned": True, "cordon_reason": given.reason}


class DrainInput(msgspec.Struct):
    reason: Reason = ""
    not_before: Annotated[float | None, field("Earliest start", quantity="moment")] = None
    not_after: Annotated[float | None, field("Latest start of a workload's migration", quantity="moment")] = None
    force: Annotated[bool, field("Wait for no disruption budget")] = False


def _drain(obj: Object, given: DrainInput) -> dict[str, Any]:
    if given.not_after is not None and given.not_after <= (given.not_before or 0.0):
        raise InvalidInput(
            "not_after: the window ends before it begins", field="not_after", hint="give a time after not_before"
        )
    why = f"drained: {given.reason}" if given.reason else "drained"
    window = {"drain_not_before": given.not_before, "drain_not_after": given.not_after, "drain_force": given.force}
    return {"drain": True, "drain_reason": given.reason, **window, "cordoned": True, "cordon_reason": why[:200]}


def _uncordon(obj: Object, _: Any) -> dict[str, Any]:
    window = {"drain_not_before": None, "drain_not_after": None, "drain_force": False}
    ended = {"uncordoned_at": obj["now"]} if (obj.get("status") or {}).get("quarantine") else {}
    return {"drain": False, "drain_reason": "", **window, "cordoned": False, "cordon_reason": "", **ended}


class MaintenanceInput(msgspec.Struct):
    on: bool
    reason: Reason = ""


def _maintain(obj: Object, given: MaintenanceInput) -> dict[str, Any]:
    return {"maintenance": given.on, "maintenance_reason": given.reason if given.on else ""}


def check_node(spec: NodeSpec) -> None:
    """Check what types can't say. Raises InvalidInput."""
    for name in spec.resources:
        if name in _TAKEN or name.partition(".")[0] in (*OVERCOMMITTED, "gpu"):
            raise InvalidInput(
                f"spec.resources.{name}: {name} is detected by the node itself",
                field=f"spec.resources.{name}",
                hint="set what the node offers when its agent starts: weft agent --cpu, --memory, --disk",
            )
        if not _RESOURCE.fullmatch(name):
            raise InvalidInput(
                f"spec.resources: {name[:80]!r} is not a valid name of a resource",
                field="spec.resources",
                hint="begin with a letter or digit; a-z, 0-9, . _ / and -, at most 63",
            )
    for name in spec.overcommit:
        if name not in OVERCOMMITTED:
            meant = suggest(name, list(OVERCOMMITTED))
            raise InvalidInput(
                f"spec.overcommit.{name[:80]}: only cpu, memory and disk can be overcommitted",
                field=f"spec.overcommit.{name[:80]}",
                hint=f"did you mean {meant}?"
                if meant
                else "for other resources, give a larger amount in spec.resources",
            )
    check_taints(spec.taints, "spec.taints")
    check_power(spec.power, spec.power_secret)
    for index, datum in enumerate(spec.data):
        if not _DATUM.fullmatch(datum):
            raise InvalidInput(
                f"spec.data[{index}]: {datum[:80]!r} is not a valid name of data",
                field=f"spec.data[{index}]",
                hint="write it like ceph-pool:raw-data; no blanks, commas or semicolons, at most 100 characters",
            )
    if max(len(spec.resources), len(spec.data)) > _MOST_DECLARED:
        raise InvalidInput(f"spec: at most {_MOST_DECLARED} resources and as many data", field="spec.resources")


SILENT_PHASES = ("Autonomous", "NotReady")  # of a node that sends no heartbeat
NOTHING_LEAVES = "the node sends no heartbeat, so nothing migrates before it is back"  # of its drain


def find_autonomy_end(spec: NodeSpec, status: NodeStatus) -> float | None:
    """When a silent node's autonomy ends (seconds since 1970); None for a node that sends heartbeats, or has no autonomy."""
    lost_at = status.since if status.lost_at is None and status.phase == "NotReady" else status.lost_at
    return lost_at + spec.autonomy_seconds if lost_at is not None and spec.autonomy_seconds else None


def find_pause_end(node: Stored) -> float:
    """When a pause of the node's guard ends (seconds since 1970): only after that is a silence counted. 0.0: it never had one."""
    return node.actions(NodeActions).guard_paused_until


NODES_BY_UID = Index("nodes by uid")
NODES_BY_ORPHAN = Index("nodes by the workload of an orphan")
NODES_BY_VOLUME = Index("nodes by volume")
NODES_BY_SNAPSHOT = Index("nodes by snapshot")
NODES_BY_POOL = Index("nodes by id of a storage pool")


def _orphans(item: Stored) -> list[str]:
    return [orphan.key for text_ in item.report(NodeReport).orphans if (orphan := read_orphan(text_)) is not None]


NODE = Kind(
    name="node",
    plural="nodes",
    title="node",
    summary="A machine that runs workloads",
    scope="fabric",
    spec=NodeSpec,
    actions=NodeActions,
    marks=NodeMarks,
    status=NodeStatus,
    report=NodeReport,
    schema=2,
    upgrades=(take_from_spec(actions=NodeActions),),
    references=(
        Reference(
            "project",
            "spec.devices_project",
            lambda spec: [spec.devices_project] if spec.devices_project else [],
            blocks=False,
        ),
        Reference("secret", "spec.power_secret", list_secrets, blocks=False, fits=check_secret_of_bmc),
    ),
    indexes={
        NODES_BY_UID: uid_of,
        NODES_BY_ORPHAN: _orphans,
        NODES_BY_VOLUME: lambda item: item.report(NodeReport).volumes,
        NODES_BY_SNAPSHOT: lambda item: [one.uid for one in item.report(NodeReport).snapshots],
        NODES_BY_POOL: lambda item: [pool.id for pool in item.report(NodeReport).pools if pool.id],
    },
    verbs=(
        Verb("cordon", "Place no new workloads on the node", input=CordonInput, act=_cordon, needs="fabric"),
        Verb(
            "uncordon",
            "Let a cordoned, drained or quarantined node take workloads again",
            act=_uncordon,
            needs="fabric",
        ),
        Verb(
            "drain",
            "Migrate all workloads away, and place no new ones",
            input=DrainInput,
            act=_drain,
            needs="fabric",
        ),
        METRICS.verb("Show what the node used, over time"),
        NODE_LOGS,
        Verb(
            "maintenance",
            "Begin or end maintenance of the node, during which no new workloads are placed there",
            input=MaintenanceInput,
            act=_maintain,
            needs="fabric",
        ),
        Verb(
            "power",
            "Ask the BMC of the node's machine whether it is on, or have it switched",
            input=PowerInput,
            act=order_power,
            needs="fabric",
            says=lambda given: f"power {given.to}",
        ),
        Verb(
            "confirm-off",
            "Confirm that a node that sends no heartbeat is off, so that its guests may start elsewhere",
            act=confirm_off,
            needs="fabric",
        ),
        Verb(
            "guard",
            "Pause the guard of nodes, or of all, for planned work on the network",
            input=GuardInput,
            act=pause_guard,
            of_all=True,
            needs="fabric",
        ),
    ),
    access=Access(
        readers="shared",
        status_writer="nodes",
        condition_writers={
            **dict.fromkeys(("Ready", "Fits", "ConnectionsFit", "StartsGuests"), "nodes"),
            "Drained": "drain",
            "Snapshots": "snapshots",
            "GuestsGoOn": "loss",
        },
        mark_writers={
            "power_reading": ("power",),
            **dict.fromkeys(("drain", "drain_reason"), (":drain", ":uncordon", "upgrades")),
            **dict.fromkeys(("cordoned", "cordon_reason"), (":cordon", ":drain", ":uncordon", "upgrades")),
        },
        further_rights=find_power_rights,
        reported_by_node=True,
        node_reads="itself",
        fabric_fields=(
            "spec.power",
            "spec.power_secret",
            "spec.devices_project",
            "marks.power_reading",
            "report.images",
            "report.booted",
            "report.snapshots",
            "report.volumes",
            "report.orders",
            "report.departed",
            "report.egress_endpoints",
            "report.guards",
            "report.orphans",
            "report.orphan_allocations",
            "conditions.Drained",
            "conditions.GuestsGoOn",
            "conditions.Snapshots",
            "conditions.StartsGuests",
        ),
    ),
    admission=Admission(check=check_node),
    display=Display(
        topic="Placement",
        columns=NODE_COLUMNS,
        progress=describe_node_progress,
    ),
    lifetime=Lifetime(
        goals={
            "power": SWITCHED,
            "drain": Goal(is_drained, "drained", ends_failed=False, ends_refused=False, asked="condition=Drained"),
        },
        find_failure=find_power_failure,
        operation=Operation(act="drain", cancel="uncordon", while_="actions.drain", condition="Drained"),
        runs_workloads=True,
    ),
)
