"""Report: a question to the scheduler about the whole fabric: how full it is and where, what waits and why, and how long
decisions take; about the drain of a node: where its workloads would go, together; about the queue; about the shares of projects;
about a rebalancing; or about a node's shortage of cores that is forecast.
People create one; the scheduler answers once, in status, and deletes it some time later."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.migration import MigrationWindow
from weft.kinds.rebalance_plan import MOST_MIGRATIONS, NodeLoad, PlannedStep
from weft.kinds.record import Access, Admission, Column, Display, Kind, Lifetime
from weft.objects.errors import InvalidInput
from weft.objects.schema import field


class ReportSpec(msgspec.Struct, kw_only=True):
    subject: Annotated[
        Literal["capacity", "drain", "queue", "fairness", "rebalance", "shortage"],
        field("Subject of the report", change="never"),
    ] = "capacity"
    node: Annotated[
        Annotated[str, field("", name=True)] | None,
        field("The node that would be drained, or will be short", change="never"),
    ] = None
    force: Annotated[bool, field("Whether that drain would wait for no disruption budget", change="never")] = False
    migrations: Annotated[
        int, field("The most migrations of a rebalancing", change="never", ge=1, le=MOST_MIGRATIONS)
    ] = 20
    bytes: Annotated[
        int,
        field("The most that they transfer together; 0 means no limit", change="never", quantity="bytes", ge=0),
    ] = 0
    hours: Annotated[
        int,
        field(
            "Hours ahead for which a migration must still pay off by the forecast; VMs without a forecast stay",
            change="never",
            ge=0,
            le=24,
        ),
    ] = 0


class ResourceUse(msgspec.Struct, frozen=True):
    """One resource over the nodes that take workloads, in cores or bytes."""

    resource: str
    capacity: float
    allocated: float
    largest_free: float
    largest_free_node: str
    stranded: float  # free where another resource is used up (less than a twentieth left): hardly usable
    used: float = 0.0  # what guests really use, on the nodes that measure it
    there: float = 0.0  # what these nodes really have, without overcommitment


class NodeUse(msgspec.Struct, frozen=True):
    """How full one node is."""

    node: str
    workloads: int
    shares: dict[str, float]  # percent allocated, by resource
    note: str = ""
    used: dict[str, float] = {}  # percent really used, if measured


class WaitingUse(msgspec.Struct, frozen=True):
    """How many workloads wait for one ``reason``, and the names of the first."""

    reason: str
    count: int
    first: list[str]


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """A workload of a node that would be drained."""

    workload: str
    project: str
    to: str = ""  # target node; "": it can't leave, for ``reason``
    mode: Literal["live", "cold", "saved", "later"] = (
        "live"  # saved: stopped here, restored there; later: it only begins there
    )
    memory: int = 0
    reason: str = ""
    message: str = ""  # why, or what it waits for first


class HeldBy(msgspec.Struct, frozen=True):
    """Holder of a place, as in the condition Placed."""

    reason: str
    message: str


class QueuedWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """A workload that waits for a place, or for the start of its lease."""

    place: int | None  # from 1, in the scheduler's order; None: its start is promised
    workload: str  # vm/web
    kind: str
    project: str
    priority: int
    waiting_seconds: float
    expected_start: float | None  # seconds since 1970; None: unknown
    # high: follows from leases' ends and promises alone; low: some end is guessed, or one before it has no known start
    confidence: Literal["high", "low", "none"]
    held_by: HeldBy
    passed_by: str = ""  # a sentence: which lease that came later comes first, or has started, and why


class ProjectShare(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the cluster that a project has, from 0 to 1."""

    project: str
    weight: float
    dominant_resource: str  # of cpu, memory and gpus that of which it has the largest share; "": it has nothing
    dominant_share: float
    entitled_share: float
    pending: int  # workloads that wait
    used: dict[str, float]  # cores, bytes of memory, GPUs


class ReportStatus(msgspec.Struct, kw_only=True):
    phase: Literal["Pending", "Done", "Failed"] = "Pending"
    at: float = 0.0
    strategy: str = ""
    node_count: int = 0
    usable: int = 0
    measured: int = 0  # usable nodes that report usage
    placed: int = 0
    resources: list[ResourceUse] = []
    nodes: list[NodeUse] = []  # the fullest and the emptiest (all up to 64)
    imbalance: float = 0.0  # standard deviation of the nodes' fullness, in points
    waiting: list[WaitingUse] = []
    decisions: int = 0
    decision_ms: dict[str, float] = {}  # quantiles over the newest decision of each workload
    policies: dict[str, int] = {}
    leaving: list[Leaving] = []  # the workloads of the node that would be drained
    queue: list[QueuedWorkload] = []  # the first that wait
    queued: int = 0  # how many wait
    fairness: list[ProjectShare] = []
    score_before: float = 0.0  # of a rebalancing; lower is better
    score_after: float = 0.0
    steps: list[PlannedStep] = []
    loads: list[NodeLoad] = []  # of a rebalancing, of the nodes that change most
    windows: list[MigrationWindow] = []  # of each step ahead of a shortage
    groups: list[int] = []  # of each of these: the number of the first that it goes together with
    message: str = ""


def check_report(spec: ReportSpec) -> None:
    """Raises InvalidInput."""
    if (spec.subject in ("drain", "shortage")) != (spec.node is not None):
        raise InvalidInput(
            "spec.node: a report on a drain or a shortage needs a node; no other report takes one",
            field="spec.node",
            hint="weft node drain NODE --dry-run",
        )


REPORT = Kind(
    name="report",
    plural="reports",
    title="report",
    summary="Capacity, waiting workloads, and how placement is decided",
    scope="fabric",
    spec=ReportSpec,
    status=ReportStatus,
    access=Access(readers="fabric", status_writer="report"),
    admission=Admission(check=check_report),
    display=Display(
        topic="Work and answers",
        columns=(
            NAME,
            Column("SUBJECT", text("spec.subject")),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            AGE,
        ),
    ),
    lifetime=Lifetime(ephemeral=True),
)
