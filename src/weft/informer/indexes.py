"""The kinds that deciders read, and the ways they look objects up. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from weft.informer.view import Index, Item, View
from weft.informer.workloads import record_of, spec_of
from weft.kinds.allocation import AllocationSpec
from weft.kinds.constraint import names_preferred, names_required
from weft.kinds.conversion import ConversionSpec, read_new, read_old
from weft.kinds.endpoint import EndpointSpec
from weft.kinds.fields.gang import read_gang
from weft.kinds.job import JobSpec, read_dependency
from weft.kinds.migration import MigrationSpec, read_migration, read_workload
from weft.kinds.node import NodeReport, read_orphan
from weft.kinds.parts.function_code import FunctionCode, networks_of_code
from weft.kinds.parts.nic import Nic, networks_of
from weft.kinds.published_port import PublishedPortSpec
from weft.kinds.registry import WORKLOADS
from weft.kinds.volume import VolumeStatus
from weft.objects.errors import InvalidInput
from weft.objects.identity import object_key


def _named(kind: str, item: Item, names: Iterable[str]) -> list[str]:
    return [object_key(kind, item.envelope.project, name) for name in names]


def _constraints(item: Item) -> list[str]:
    spec = spec_of(item)
    try:
        return [*names_required(spec.constraint), *names_preferred(spec.prefer)]
    except InvalidInput:
        return []  # of a later weft's words; the scheduler says so


def name_gang(item: Item) -> str:
    """``default/web``, of a workload that has one."""
    gang = spec_of(item).gang
    return f"{item.envelope.project}/{read_gang(gang)[0]}" if gang is not None else ""


def key_of_moving(migration: Item) -> str:
    """The key of the workload that a Migration moves."""
    kind, name = read_workload(migration.spec(MigrationSpec))
    return object_key(kind, migration.envelope.project, name)


def keys_of_converted(conversion: Item) -> tuple[str, str]:
    """The keys of the workload that a Conversion converts, and of what that becomes."""
    spec, project = conversion.spec(ConversionSpec), conversion.envelope.project
    old, new = read_old(spec), read_new(spec)
    return object_key(old[0], project, old[1]), object_key(new[0], project, new[1])


def is_room(allocation: Item) -> bool:
    """Whether it only holds room, for a Migration that is planned."""
    return allocation.spec(AllocationSpec).role == "reserved"


def _migrations(allocation: Item) -> list[str]:
    """The uid of the Migration that an allocation is there for."""
    move = allocation.spec(AllocationSpec).move
    return [read_migration(move.key)] if move is not None else []


PLACED = tuple(WORKLOADS)
WORKLOADS_BY_UID = Index("workloads by uid", PLACED, lambda item: (item.uid,))
WORKLOADS_BY_IMAGE = Index(
    "workloads by image", PLACED, lambda item: _named("image", item, record_of(item).ask(spec_of(item)).images)
)
WORKLOADS_BY_VOLUME = Index(
    "workloads by volume", PLACED, lambda item: _named("volume", item, record_of(item).volumes(spec_of(item)))
)
WORKLOADS_BY_NETWORK = Index(
    "workloads by network", PLACED, lambda item: _named("network", item, networks_of(spec_of(item).networks))
)
WORKLOADS_BY_GROUP = Index(
    "workloads by security group",
    PLACED,
    lambda item: _named("securitygroup", item, spec_of(item).security_groups),
)
WORKLOADS_BY_CONSTRAINT = Index(
    "workloads by constraint", PLACED, lambda item: _named("constraint", item, _constraints(item))
)
WORKLOADS_BY_GANG = Index("workloads by gang", PLACED, lambda item: (name_gang(item),) if spec_of(item).gang else ())
NODES_BY_UID = Index("nodes by uid", ("node",), lambda item: (item.uid,))
NODES_BY_ORPHAN = Index(
    "nodes by orphan",
    ("node",),
    lambda item: [orphan.key for text in item.report(NodeReport).orphans if (orphan := read_orphan(text))],
)
NODES_BY_VOLUME = Index("nodes by volume", ("node",), lambda item: item.report(NodeReport).volumes)
NETWORKS_BY_UID = Index("networks by uid", ("network",), lambda item: (item.uid,))
VOLUMES_BY_UID = Index("volumes by uid", ("volume",), lambda item: (item.uid,))
VOLUMES_BY_HOME = Index(
    "volumes by home", ("volume",), lambda item: (home,) if (home := item.status(VolumeStatus).node_uid) else ()
)
# Its places; room that is held for it is none.
ALLOCATIONS_BY_WORKLOAD = Index(
    "allocations by workload",
    ("allocation",),
    lambda item: () if is_room(item) else (item.spec(AllocationSpec).workload.uid,),
)
ROOM_BY_MIGRATION = Index("room by migration", ("allocation",), lambda item: _migrations(item) if is_room(item) else ())
ALLOCATIONS_BY_NODE = Index("allocations by node", ("allocation",), lambda item: (item.spec(AllocationSpec).node_uid,))
ALLOCATIONS_BY_VOLUME = Index(
    "allocations by volume", ("allocation",), lambda item: [volume.uid for volume in item.spec(AllocationSpec).volumes]
)
ENDPOINTS_BY_WORKLOAD = Index(
    "endpoints by workload", ("endpoint",), lambda item: (item.spec(EndpointSpec).workload.uid,)
)
ENDPOINTS_BY_NETWORK = Index("endpoints by network", ("endpoint",), lambda item: (item.spec(EndpointSpec).network_uid,))
PUBLISHED_PORTS_BY_WORKLOAD = Index(
    "published ports by workload", ("publishedport",), lambda item: (item.spec(PublishedPortSpec).workload.uid,)
)


MIGRATIONS_BY_UID = Index("migrations by uid", ("migration",), lambda item: (item.uid,))
MIGRATIONS_BY_WORKLOAD = Index(
    "migrations by workload",
    ("migration",),
    lambda item: [key_of_moving(item)],
)


CONVERSIONS_BY_WORKLOAD = Index("conversions by either workload", ("conversion",), keys_of_converted)

VERSIONS_BY_FUNCTION = Index(
    "function versions by function",
    ("functionversion",),
    lambda item: [item.envelope.owner.uid] if item.envelope.owner is not None else (),
)


def _owner(item: Item) -> list[str]:
    owner = item.envelope.owner
    return [owner.uid] if owner is not None and owner.kind == "job" else []


def _waited_for(allocation: Item) -> list[str]:
    names = allocation.spec(AllocationSpec).waits_for
    return names.split(",") if names else []


PREEMPTIBLE_ANYWHERE = "*"
PREEMPTIBLE = Index(
    "preemptible allocations by node",
    ("allocation",),
    lambda item: (
        (item.spec(AllocationSpec).node_uid, PREEMPTIBLE_ANYWHERE) if item.spec(AllocationSpec).preemptible else ()
    ),
)
ALLOCATIONS_BY_WAITED = Index("allocations by what they wait for", ("allocation",), _waited_for)
CONTAINERS_BY_JOB = Index("containers by job", ("container",), _owner)
JOBS_BY_SCHEDULE = Index("jobs by schedule", ("job",), _owner)  # its runs
JOBS_BY_AFTER = Index(
    "jobs by what they follow",
    ("job",),
    lambda item: _named("job", item, (read_dependency(one).name for one in item.spec(JobSpec).after)),
)


def find_room(view: View, item: Item) -> Item | None:
    """What is held for a Migration until it begins."""
    return next(iter(view.find(ROOM_BY_MIGRATION, item.uid)), None)


def choose_endpoint(endpoints: Iterable[Item], network_uid: str, nic: Nic) -> Item | None:
    """Which of a workload's endpoints is that NIC's: the one with the address it asks for, the lowest if it asks for none."""
    found = [item for item in endpoints if item.spec(EndpointSpec).network_uid == network_uid]
    fitting = [item for item in found if nic.address in (None, item.spec(EndpointSpec).address)]
    return min(fitting, key=lambda item: item.key, default=None)


KINDS = (
    *PLACED,
    "node",
    "allocation",
    "decision",
    "recommendation",
    "report",
    "migration",
    "conversion",
    "image",
    "secret",
    "network",
    "securitygroup",
    "volume",
    "constraint",
    "endpoint",
    "publishedport",
    "function",
    "functionversion",
    "project",
    "placementpolicy",
    "job",
)
FUNCTIONS_BY_NETWORK = Index(
    "functions and their versions by network",
    ("function", "functionversion"),
    lambda item: _named("network", item, networks_of_code(item.spec(FunctionCode))),
)


INDEXES = (
    FUNCTIONS_BY_NETWORK,
    WORKLOADS_BY_UID,
    WORKLOADS_BY_IMAGE,
    WORKLOADS_BY_VOLUME,
    WORKLOADS_BY_NETWORK,
    WORKLOADS_BY_GROUP,
    WORKLOADS_BY_CONSTRAINT,
    WORKLOADS_BY_GANG,
    NODES_BY_UID,
    NODES_BY_ORPHAN,
    NODES_BY_VOLUME,
    NETWORKS_BY_UID,
    VOLUMES_BY_UID,
    VOLUMES_BY_HOME,
    ALLOCATIONS_BY_WORKLOAD,
    ROOM_BY_MIGRATION,
    ALLOCATIONS_BY_NODE,
    ALLOCATIONS_BY_VOLUME,
    ENDPOINTS_BY_WORKLOAD,
    ENDPOINTS_BY_NETWORK,
    PUBLISHED_PORTS_BY_WORKLOAD,
    MIGRATIONS_BY_UID,
    MIGRATIONS_BY_WORKLOAD,
    CONVERSIONS_BY_WORKLOAD,
    VERSIONS_BY_FUNCTION,
    PREEMPTIBLE,
    ALLOCATIONS_BY_WAITED,
    CONTAINERS_BY_JOB,
    JOBS_BY_SCHEDULE,
    JOBS_BY_AFTER,
)


def make_view() -> View:
    """An empty view of all the deciders read."""
    return View(KINDS, INDEXES)
