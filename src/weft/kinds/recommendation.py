"""Recommendation: a question to the scheduler: where would this workload go now, as it is or as it might be, and what would
have to be otherwise for it to fit? People make one; the scheduler answers once, in status, and takes it away some time later.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.decision import Verdict
from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.migration import MigrationForecast
from weft.kinds.record import Column, Kind
from weft.objects.errors import InvalidInput
from weft.objects.schema import field

KEPT_SECONDS = 600.0  # an answered one: it tells of a moment

Name = Annotated[str, field("", name=True)]


class MigrationQuery(msgspec.Struct, frozen=True, kw_only=True):
    to: Annotated[str | None, field("The node it would move to; without one any other than its own", name=True)] = None
    mode: Annotated[Literal["live", "cold", "best"], field("live, cold or, of a container, best")] = "live"
    bytes_per_second: Annotated[int, field("How fast it might send", quantity="bytes", ge=0)] = 0


class RecommendationSpec(msgspec.Struct, kw_only=True):
    workload: Annotated[
        str, field("The workload, KIND/NAME, in this project; without one, changes is a whole spec", change="never")
    ] = ""
    kind: Annotated[str, field("The kind of workload that changes is a whole spec of", change="never", name=True)] = (
        "vm"
    )
    changes: Annotated[
        dict[str, Any], field("Fields of its spec that would be otherwise: what if", change="never")
    ] = {}
    instead_of: Annotated[
        str,
        field(
            "The workload, KIND/NAME, that hands its volumes and groups over to it and keeps its place", change="never"
        ),
    ] = ""
    move: Annotated[MigrationQuery | None, field("Where it would move to from where it runs", change="never")] = None
    nodes: Annotated[list[Name], field("Nodes whose verdict is wanted in any case", change="never")] = []


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One change after which the workload fits on ``node``: ``changes`` holds the fields of its spec that would have to be
    otherwise (none: the node would), ``command`` does it, ``loss`` says how much of what was asked is given up (0–1)."""

    node: str
    text: str
    changes: dict[str, Any] = {}
    command: str = ""
    loss: float = 0.0


class GangPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where another member of its gang would go: one that is there (``vm/web-1``), or one like it (``member 3``)."""

    workload: str
    node: str


class RecommendationStatus(msgspec.Struct, kw_only=True):
    """``current`` is the node it has, ``best`` the one it would get, ``forecast`` what it would take to move
    there; ``advice`` is there when none fits, least change first;
    ``gang`` the others that would be placed together with it. The rest as in a Decision."""

    phase: Literal["Pending", "Done", "Failed"] = "Pending"
    reason: str = ""
    message: str = ""
    at: float = 0.0
    policy: str = ""
    basis: Literal["allocation", "used"] = "allocation"
    nodes: int = 0
    current: str = ""
    best: str = ""
    verdicts: list[Verdict] = []
    refused_by: dict[str, int] = {}
    advice: list[Advice] = []
    gang: list[GangPlace] = []
    notes: list[str] = []
    forecast: MigrationForecast | None = None


def check_recommendation(spec: RecommendationSpec) -> None:
    kind, slash, name = spec.workload.partition("/")
    if spec.workload and (not slash or not kind or not name):
        raise InvalidInput(
            f"spec.workload: {spec.workload[:60]!r} names no workload", field="spec.workload", hint="write vm/web"
        )
    if spec.move is not None and (not spec.workload or spec.changes):
        raise InvalidInput(
            "spec.move: what moves is a workload as it is", field="spec.move", hint="name it, and leave changes out"
        )
    if spec.instead_of and (spec.workload or spec.instead_of.count("/") != 1 or not all(spec.instead_of.split("/"))):
        raise InvalidInput(
            "spec.instead_of: it is for what isn't there yet, and names what is",
            field="spec.instead_of",
            hint="write container/web, give a whole spec in spec.changes, and leave workload out",
        )
    if not spec.workload and not spec.changes:
        raise InvalidInput(
            "spec.workload is missing",
            field="spec.workload",
            hint="name one (vm/web), or give a whole spec in spec.changes",
        )


RECOMMENDATION = Kind(
    name="recommendation",
    plural="recommendations",
    title="recommendation",
    summary="What the scheduler would do with a workload now",
    spec=RecommendationSpec,
    status=RecommendationStatus,
    status_writer="recommend",
    ephemeral=True,
    check=check_recommendation,
    columns=(
        NAME,
        Column("WORKLOAD", text("spec.workload", "–")),
        Column("PHASE", text("status.phase", "Pending"), keep=True),
        Column("NODE", text("status.current", "–")),
        Column("BEST", text("status.best", "–")),
        Column("MESSAGE", text("status.message", ""), flexible=True),
        AGE,
    ),
)
