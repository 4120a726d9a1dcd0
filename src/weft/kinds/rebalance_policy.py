"""RebalancePolicy: weft makes load even without being asked, within a budget for each hour. Without one nothing is automatic. The
controller ``rebalance policies`` asks the scheduler every ten minutes, and makes RebalancePlans that begin immediately."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import AGE, NAME, note, text
from weft.kinds.rebalance_plan import MOST_CONCURRENT, MOST_MIGRATIONS
from weft.kinds.record import Access, Admission, Column, Display, Kind, Object
from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_bytes
from weft.objects.schema import field

LASTS_HOURS = 4
USUAL_PER_HOUR, USUAL_CONCURRENT = 10, 1
ONLY_NAME = "auto"
POLICY_LABEL = "rebalance-policy"  # of the plans and reports that the policy has made: its name


class RebalancePolicySpec(msgspec.Struct, kw_only=True):
    migrations_per_hour: Annotated[
        int, field("Most migrations that begin within an hour", ge=0, le=MOST_MIGRATIONS)
    ] = USUAL_PER_HOUR
    bytes_per_hour: Annotated[
        int, field("Most that they transfer within an hour; 0 means no limit", quantity="bytes", ge=0)
    ] = 0
    concurrent: Annotated[int, field("How many migrate at the same time", ge=1, le=MOST_CONCURRENT)] = USUAL_CONCURRENT
    hours: Annotated[
        int, field("Hours ahead for which a migration must still pay off by the forecast", ge=1, le=24)
    ] = LASTS_HOURS
    least_gain: Annotated[float, field("Least gain of a plan, as a share of the score", ge=0.0, le=1.0)] = 0.05


class RebalancePolicyStatus(msgspec.Struct, kw_only=True):
    looks: int = 0  # how often the scheduler was asked
    looked_at: float | None = None  # when it was last asked, in seconds since 1970
    report: str = ""  # the question that is open
    gains_since: float | None = None  # since when a plan gained enough; None: none does
    plan: str = ""  # the newest plan that it made
    message: str = ""


def check_policy(spec: RebalancePolicySpec) -> None:
    """Raises InvalidInput for a budget with which nothing would ever be planned."""
    if spec.migrations_per_hour == 0:
        raise InvalidInput(
            "spec.migrations_per_hour: with 0 nothing would ever migrate",
            field="spec.migrations_per_hour",
            hint="give 1 or more; to switch it off: weft rebalance auto off",
        )


def count_migrations(count: int) -> str:
    """``1 migration``, ``2 migrations``"""
    return f"{count} migration{'s' if count != 1 else ''}"


def describe_budget(obj: Object) -> str:
    spec: dict[str, Any] = obj["spec"]
    most = count_migrations(spec.get("migrations_per_hour", USUAL_PER_HOUR))
    return (
        f"{most} and {format_bytes(spec['bytes_per_hour'])} an hour"
        if spec.get("bytes_per_hour")
        else f"{most} an hour"
    )


REBALANCE_POLICY = Kind(
    name="rebalancepolicy",
    plural="rebalancepolicies",
    title="rebalance policy",
    summary="Automatic rebalancing within a budget",
    scope="fabric",
    spec=RebalancePolicySpec,
    status=RebalancePolicyStatus,
    access=Access(readers="fabric", status_writer="rebalance policies"),
    admission=Admission(only_name=ONLY_NAME, check=check_policy),
    display=Display(
        topic="Work and answers",
        columns=(
            NAME,
            Column("BUDGET", describe_budget),
            Column("CONCURRENT", text("spec.concurrent"), align="right", wide=True),
            Column("PLAN", text("status.plan", "–")),
            AGE,
            Column("NOTE", note, flexible=True),
        ),
    ),
)
