"""Decision: why a workload stands where it does, or nowhere. Written by the scheduler in the commit that places it;
named ``<kind>.<name>`` of the workload; the newest one only (the journal keeps the older)."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.record import Column, Kind
from weft.objects.identity import Ref


class Term(msgspec.Struct, frozen=True):
    """One part of a score: ``weight · value`` with value 0–100."""

    name: str
    weight: float
    value: float


class Shortfall(msgspec.Struct, frozen=True):
    """``resource`` wanted against what the node could still give (cores or bytes)."""

    resource: str
    wanted: float
    free: float


class Verdict(msgspec.Struct, frozen=True):
    """What became of one node. ``filter`` names the plugin that refused; ``reason`` is a phrase for people."""

    node: str
    outcome: Literal["chosen", "fits", "refused"]
    score: float | None = None
    terms: list[Term] = []
    filter: str = ""
    reason: str = ""
    shortfalls: list[Shortfall] = []


class DecisionSpec(msgspec.Struct, kw_only=True):
    """``verdicts``: the chosen, the runners-up and a sample of the refused (all of them up to 64 nodes);
    ``refused_by`` counts every refusal by filter. ``error`` is the reason (insufficientResources …) when nothing fits.
    ``nearest`` says in words which smaller spec would fit best and ``nearest_node`` where; ``notes`` which preferences were
    dropped, and what of the spec needs attention. ``policy`` is the strategy, ``named`` the @NAME of the placement policy
    that says so, if one does; ``basis`` what it took for a node's load."""

    workload: Ref
    policy: str
    named: str = ""
    basis: Literal["allocation", "used"] = "allocation"
    at: float
    took_ms: float
    nodes: int
    verdicts: list[Verdict] = []
    refused_by: dict[str, int] = {}
    error: str = ""
    message: str = ""
    nearest: str = ""
    nearest_node: str = ""
    notes: list[str] = []
    gang: str = ""  # those it is placed together with, or not at all


class DecisionStatus(msgspec.Struct, kw_only=True):
    pass


DECISION = Kind(
    name="decision",
    plural="decisions",
    title="decision",
    summary="Why a workload is where it is",
    writer="fabric",
    goes_with_owner=True,
    spec=DecisionSpec,
    status=DecisionStatus,
    columns=(
        NAME,
        Column("POLICY", text("spec.policy")),
        Column("ERROR", text("spec.error")),
        Column("MESSAGE", text("spec.message", ""), flexible=True),
        AGE,
    ),
)
