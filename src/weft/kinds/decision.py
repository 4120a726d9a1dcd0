"""Decision: why a workload is on its node, or on none. Written by the scheduler in the commit that places it;
named ``<kind>.<name>`` of the workload; the newest one only (the journal keeps the older)."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.record import Access, Column, Display, Kind, Lifetime
from weft.objects.identity import Ref


class Term(msgspec.Struct, frozen=True):
    """One part of a score: ``weight · value`` with value 0–100."""

    name: str
    weight: float
    value: float


class Shortfall(msgspec.Struct, frozen=True):
    resource: str
    wanted: float  # cores or bytes
    free: float


class Verdict(msgspec.Struct, frozen=True):
    """The result for one node."""

    node: str
    outcome: Literal["chosen", "fits", "refused"]
    score: float | None = None
    terms: list[Term] = []
    filter: str = ""  # the plugin that refused
    reason: str = ""  # a phrase for people
    shortfalls: list[Shortfall] = []


class DecisionSpec(msgspec.Struct, kw_only=True):
    workload: Ref
    generation: int = 0  # of the workload's spec that was decided on; 0: by an older weft
    policy: str  # the strategy
    named: str = ""  # the @NAME of the placement policy with that strategy, if any
    basis: Literal["allocation", "used"] = "allocation"  # what counted as a node's load
    at: float
    took_ms: float
    nodes: int
    verdicts: list[Verdict] = []  # the chosen, the runners-up and a sample of the refused (all of them up to 64 nodes)
    refused_by: dict[str, int] = {}  # all refusals by filter
    error: str = ""  # the reason (insufficientResources …) if nothing fits
    message: str = ""
    nearest: str = ""  # the smaller spec that would fit best, in words
    nearest_node: str = ""  # where that would fit
    notes: list[str] = []  # dropped preferences, and parts of the spec that need attention
    gang: str = ""  # those it is placed together with, or not at all


class DecisionStatus(msgspec.Struct, kw_only=True):
    pass


DECISION = Kind(
    name="decision",
    plural="decisions",
    title="decision",
    summary="Why a workload is where it is",
    spec=DecisionSpec,
    status=DecisionStatus,
    access=Access(readers="project", writer="fabric"),
    display=Display(
        columns=(
            NAME,
            Column("POLICY", text("spec.policy")),
            Column("ERROR", text("spec.error")),
            Column("MESSAGE", text("spec.message", ""), flexible=True),
            AGE,
        ),
    ),
    lifetime=Lifetime(goes_with_owner=True),
)
