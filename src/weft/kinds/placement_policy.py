"""PlacementPolicy: strategies and weights under a name, for ``--strategy @NAME``. A change counts from the next decision on.

The one called ``default`` is the cluster's: it decides on workloads that name no strategy, in projects that name none.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.fields.strategy import DEFAULT_STRATEGY, SERVERLESS_STRATEGY, read_plain_strategy
from weft.kinds.record import Access, Admission, Column, Display, Kind
from weft.objects.schema import field

CLUSTER_DEFAULT = "default"


class PlacementPolicySpec(msgspec.Struct, kw_only=True):
    description: Annotated[str, field("Description, for people", max_length=200)] = ""
    strategy: Annotated[str, field("Strategies for long-lived workloads, with weights where they differ")] = (
        DEFAULT_STRATEGY
    )
    basis: Annotated[
        Literal["allocation", "used"],
        field("What counts as used: what workloads request (allocation), or what they really use (used)"),
    ] = "allocation"
    serverless: Annotated[str, field("Strategies for serverless workloads, likewise")] = SERVERLESS_STRATEGY


class PlacementPolicyStatus(msgspec.Struct, kw_only=True):
    pass


def check_placement_policy(spec: PlacementPolicySpec) -> None:
    """Both strategies get their one spelling. Raises InvalidStrategy."""
    spec.strategy = read_plain_strategy(spec.strategy, "spec.strategy")
    spec.serverless = read_plain_strategy(spec.serverless, "spec.serverless")


def _working(obj: object) -> str:
    conditions = obj.get("conditions") or [] if isinstance(obj, dict) else []
    failed = next((c for c in conditions if c["type"] == "Working" and c["status"] == "False"), None)
    return f"{failed['reason']}: {failed['message']}" if failed else ""


PLACEMENT_POLICY = Kind(
    name="placementpolicy",
    plural="placementpolicies",
    title="placement policy",
    summary="Placement strategies and weights under a name",
    scope="fabric",
    spec=PlacementPolicySpec,
    status=PlacementPolicyStatus,
    access=Access(readers="shared", condition_writers={"Working": "scheduler"}),
    admission=Admission(check=check_placement_policy),
    display=Display(
        topic="Placement",
        aliases=("policy", "policies"),
        columns=(
            NAME,
            Column("STRATEGY", text("spec.strategy")),
            Column("SERVERLESS", text("spec.serverless"), wide=True),
            Column("BASIS", text("spec.basis", "allocation"), wide=True),
            Column("DESCRIPTION", text("spec.description", ""), flexible=True),
            AGE,
            Column("NOTE", _working, flexible=True),
        ),
    ),
)
