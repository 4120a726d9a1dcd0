"""Report: a question to the scheduler about all of the fabric: how full it is and where, what waits and why, and how long
deciding takes. People make one; the scheduler answers once, in status, and takes it away some time later."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.cells import AGE, NAME, text
from weft.kinds.record import Column, Kind
from weft.objects.schema import field


class ReportSpec(msgspec.Struct, kw_only=True):
    subject: Annotated[Literal["placement"], field("What it is about", change="never")] = "placement"


class ResourceUse(msgspec.Struct, frozen=True):
    """Of one resource, over the nodes that take workloads: cores or bytes. ``stranded`` is free where something else is
    used up (less than a twentieth left), so that hardly any workload can have it."""

    resource: str
    capacity: float
    allocated: float
    largest_free: float
    largest_free_node: str
    stranded: float


class NodeUse(msgspec.Struct, frozen=True):
    """How full one node is: ``shares`` 0–100 by resource."""

    node: str
    workloads: int
    shares: dict[str, float]
    note: str = ""


class WaitingUse(msgspec.Struct, frozen=True):
    """How many workloads wait for one ``reason``, and the names of the first."""

    reason: str
    count: int
    first: list[str]


class ReportStatus(msgspec.Struct, kw_only=True):
    """``nodes`` holds the fullest and the emptiest (all up to 64); ``imbalance`` is the standard deviation of how full
    nodes are, in points; ``decision_ms`` the quantiles over the newest decision of each workload."""

    phase: Literal["Pending", "Done", "Failed"] = "Pending"
    at: float = 0.0
    strategy: str = ""
    node_count: int = 0
    usable: int = 0
    placed: int = 0
    resources: list[ResourceUse] = []
    nodes: list[NodeUse] = []
    imbalance: float = 0.0
    waiting: list[WaitingUse] = []
    decisions: int = 0
    decision_ms: dict[str, float] = {}
    policies: dict[str, int] = {}


REPORT = Kind(
    name="report",
    plural="reports",
    title="report",
    summary="How full the fabric is, what waits, and how it is decided",
    scope="fabric",
    spec=ReportSpec,
    status=ReportStatus,
    status_writer="report",
    columns=(NAME, Column("SUBJECT", text("spec.subject")), Column("PHASE", text("status.phase", "Pending")), AGE),
)
