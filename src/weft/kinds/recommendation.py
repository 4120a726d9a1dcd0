"""Recommendation: a question to the scheduler: where would this workload be placed now, as it is or with changes, and which
change would make it fit? Or: what of this project waits, since when and until when? People create one; the scheduler answers once,
in status, and deletes it some time later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.decision import Verdict
from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.migration import MigrationForecast, MigrationWindow
from weft.kinds.parts.migration.verb import MIGRATION_MODES
from weft.kinds.record import Access, Admission, Column, Display, Kind, Lifetime
from weft.kinds.report import QueuedWorkload
from weft.objects.errors import InvalidInput
from weft.objects.schema import field

MOST_ASSUMED = 50
KEPT_SECONDS = 600.0  # of an answered one: the answer is of a moment

Name = Annotated[str, field("", name=True)]


class MigrationQuery(msgspec.Struct, frozen=True, kw_only=True):
    to: Annotated[str | None, field("Target node; any other than its own if unset", name=True)] = None
    mode: Annotated[Literal["live", "cold", "best"], field("live, cold or, for a container, best")] = "live"
    bytes_per_second: Annotated[int, field("Limit on the transfer rate, per second", quantity="bytes", ge=0)] = 0
    window: Annotated[bool, field("Choose a time within a day, too, at which the workload does least")] = False


class AssumedWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """A workload that isn't there yet, and counts as placed: one of those that come before in a plan."""

    kind: Annotated[str, field("Its kind", name=True)] = "vm"
    spec: Annotated[dict[str, Any], field("Its whole spec")]
    node: Annotated[str, field("Node where it counts", name=True)]


class RecommendationSpec(msgspec.Struct, kw_only=True):
    subject: Annotated[
        Literal["placement", "queue"],
        field("placement: where a workload would go; queue: which workloads of the project wait", change="never"),
    ] = "placement"
    workload: Annotated[
        str, field("Workload to place, KIND/NAME, in this project; if unset, changes is a whole spec", change="never")
    ] = ""
    kind: Annotated[str, field("Kind of the workload, if changes is a whole spec", change="never", name=True)] = "vm"
    changes: Annotated[dict[str, Any], field("Changes to the workload's spec to assume", change="never")] = {}
    instead_of: Annotated[
        str,
        field(
            "Workload, KIND/NAME, that hands its volumes and groups over to the new one and keeps its place",
            change="never",
        ),
    ] = ""
    migration: Annotated[
        MigrationQuery | None, field("Ask where the running workload would migrate", change="never")
    ] = None
    suggest: Annotated[
        bool,
        field(
            "Name better nodes, too, for a VM that runs, which takes the right to migrate it: the whole fabric is read",
            change="never",
        ),
    ] = False
    nodes: Annotated[list[Name], field("Nodes to show verdicts for in any case", change="never")] = []
    assumed: Annotated[
        list[AssumedWorkload],
        field("Workloads that are to come before, and count as placed where they would go", change="never"),
    ] = []


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One change after which the workload fits on ``node``."""

    node: str
    text: str
    changes: dict[str, Any] = {}  # fields of its spec; none: the node must change
    command: str = ""  # makes the change
    loss: float = 0.0  # share of the request that is given up, 0–1


class Suggestion(msgspec.Struct, frozen=True, kw_only=True):
    """A node where a running VM would be better than where it is. ``gain``: points of a rebalancing's score."""

    node: str
    gain: float
    seconds: float  # that its migration takes
    bytes: int
    reasons: list[str]


class GangPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Place of another member of its gang: one that is there (``vm/web-1``), or one like it (``member 3``)."""

    workload: str
    node: str


class RecommendationStatus(msgspec.Struct, kw_only=True):
    """Other fields as in a Decision."""

    phase: Literal["Pending", "Done", "Failed"] = "Pending"
    reason: str = ""
    message: str = ""
    at: float = 0.0
    policy: str = ""
    basis: Literal["allocation", "used"] = "allocation"
    nodes: int = 0
    current: str = ""  # its present node
    best: str = ""  # the node it would get
    verdicts: list[Verdict] = []
    refused_by: dict[str, int] = {}
    advice: list[Advice] = []  # if no node fits, least change first
    gang: list[GangPlace] = []  # others that would be placed together with it
    notes: list[str] = []
    suggestions: list[Suggestion] = []  # of a VM that runs: better nodes, the best first
    window: MigrationWindow | None = None  # when it would migrate
    forecast: MigrationForecast | None = None  # of the migration to ``best``, if it would migrate
    queue: list[QueuedWorkload] = []  # the first of the project that wait
    queued: int = 0  # how many of the project wait


def check_recommendation(spec: RecommendationSpec) -> None:
    if spec.subject == "queue":
        if spec != RecommendationSpec(subject="queue"):
            raise InvalidInput(
                "spec.subject: a question about the queue takes no other field",
                field="spec.subject",
                hint="leave the other fields out, or ask about placement",
            )
        return
    kind, slash, name = spec.workload.partition("/")
    if spec.workload and (not slash or not kind or not name):
        raise InvalidInput(
            f"spec.workload: {spec.workload[:60]!r} is not a workload", field="spec.workload", hint="write vm/web"
        )
    if len(spec.assumed) > MOST_ASSUMED:
        raise InvalidInput(
            f"spec.assumed: at most {MOST_ASSUMED} workloads", field="spec.assumed", hint="ask for fewer at a time"
        )
    if spec.migration is not None and (not spec.workload or spec.changes):
        raise InvalidInput(
            "spec.migration: goes only with an existing workload, without changes",
            field="spec.migration",
            hint="set spec.workload, and leave spec.changes out",
        )
    if spec.instead_of and (spec.workload or spec.instead_of.count("/") != 1 or not all(spec.instead_of.split("/"))):
        raise InvalidInput(
            "spec.instead_of: goes only with a new workload, and names the existing one that it replaces",
            field="spec.instead_of",
            hint="write container/web, give a whole spec in spec.changes, and leave spec.workload out",
        )
    if not spec.workload and not spec.changes:
        raise InvalidInput(
            "spec.workload is missing",
            field="spec.workload",
            hint="name one (vm/web), or give a whole spec in spec.changes",
        )


def find_recommendation_rights(old: RecommendationSpec | None, new: RecommendationSpec) -> Iterable[tuple[str, str]]:
    """Rights that it takes in the project: better nodes show how loaded the fabric is, so only those who may migrate the workload
    ask."""
    kind = new.workload.partition("/")[0]
    wants = new.suggest and (old is None or not old.suggest)
    return [(f"{kind if kind in MIGRATION_MODES else 'vm'}:migrate", "ask for better nodes")] if wants else []


RECOMMENDATION = Kind(
    name="recommendation",
    plural="recommendations",
    title="recommendation",
    summary="Where the scheduler would place a workload now",
    spec=RecommendationSpec,
    status=RecommendationStatus,
    access=Access(readers="project", status_writer="recommend", further_rights_in_project=find_recommendation_rights),
    admission=Admission(check=check_recommendation),
    display=Display(
        topic="Work and answers",
        columns=(
            NAME,
            Column("WORKLOAD", text("spec.workload", "–")),
            Column("PHASE", text("status.phase", "Pending"), keep=True),
            Column("NODE", text("status.current", "–")),
            Column("BEST", text("status.best", "–")),
            Column("MESSAGE", text("status.message", ""), flexible=True),
            AGE,
        ),
    ),
    lifetime=Lifetime(ephemeral=True),
)
