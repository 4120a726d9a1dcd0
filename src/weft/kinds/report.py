"""Report: a question to the scheduler about all of the fabric: how full it is and where, what waits and why, and how long
deciding takes; or about the drain of a node: where all that is on it would go, together. People make one; the scheduler
answers once, in status, and takes it away some time later."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.record import Column, Kind
from weft.objects.errors import InvalidInput
from weft.objects.schema import field


class ReportSpec(msgspec.Struct, kw_only=True):
    subject: Annotated[Literal["capacity", "drain"], field("Subject of the report", change="never")] = "capacity"
    node: Annotated[
        Annotated[str, field("", name=True)] | None, field("The node that would be drained", change="never")
    ] = None


class ResourceUse(msgspec.Struct, frozen=True):
    """Of one resource, over the nodes that take workloads: cores or bytes. ``stranded`` is free where something else is
    used up (less than a twentieth left), so that hardly any workload can have it. ``used`` is what guests really use of what
    is ``there`` (whatever the ratio of overcommitment), both on the nodes that measure it."""

    resource: str
    capacity: float
    allocated: float
    largest_free: float
    largest_free_node: str
    stranded: float
    used: float = 0.0
    there: float = 0.0


class NodeUse(msgspec.Struct, frozen=True):
    """How full one node is: ``shares`` 0–100 by resource; ``used`` likewise, of what is really there, where it is measured."""

    node: str
    workloads: int
    shares: dict[str, float]
    note: str = ""
    used: dict[str, float] = {}


class WaitingUse(msgspec.Struct, frozen=True):
    """How many workloads wait for one ``reason``, and the names of the first."""

    reason: str
    count: int
    first: list[str]


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """A workload of a node that would be drained: the node it would move to, none if it can't leave, and why. ``mode``: live; saved
    here and on from there; or cold."""

    workload: str
    project: str
    to: str = ""
    mode: Literal["live", "cold", "saved"] = "live"
    memory: int = 0
    reason: str = ""
    message: str = ""


class ReportStatus(msgspec.Struct, kw_only=True):
    """``nodes`` holds the fullest and the emptiest (all up to 64); ``imbalance`` is the standard deviation of how full
    nodes are, in points; ``measured`` counts the usable nodes that say what they use; ``decision_ms`` the
    quantiles over the newest decision of each workload; ``leaving`` what is on the node that would be drained."""

    phase: Literal["Pending", "Done", "Failed"] = "Pending"
    at: float = 0.0
    strategy: str = ""
    node_count: int = 0
    usable: int = 0
    measured: int = 0
    placed: int = 0
    resources: list[ResourceUse] = []
    nodes: list[NodeUse] = []
    imbalance: float = 0.0
    waiting: list[WaitingUse] = []
    decisions: int = 0
    decision_ms: dict[str, float] = {}
    policies: dict[str, int] = {}
    leaving: list[Leaving] = []
    message: str = ""


def check_report(spec: ReportSpec) -> None:
    """Raises InvalidInput."""
    if (spec.subject == "drain") != (spec.node is not None):
        raise InvalidInput(
            "spec.node: a report on a drain needs a node; no other report takes one",
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
    status_writer="report",
    ephemeral=True,
    check=check_report,
    columns=(
        NAME,
        Column("SUBJECT", text("spec.subject")),
        Column("PHASE", text("status.phase", "Pending"), keep=True),
        AGE,
    ),
)
