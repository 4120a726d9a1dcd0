"""DisruptionBudget: how many of the workloads with some labels may be down together by weft's own doing. The scheduler counts it
when it chooses whom to preempt, a drain when it stops a workload to migrate it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Object, Stored
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_labels
from weft.objects.schema import field

MOST_LABELS = 8

BUDGETS_BY_LABEL = Index("disruption budgets by one of their labels")

Count = Annotated[int, msgspec.Meta(ge=0, le=100_000)]


class DisruptionBudgetSpec(msgspec.Struct, kw_only=True):
    selector: Annotated[
        dict[str, str], field("Labels of the VMs and containers that it protects; they have all of them")
    ]
    max_unavailable: Annotated[Count | None, field("How many of them may be down together")] = None
    min_available: Annotated[Count | None, field("How many of them must stay up, in place of max_unavailable")] = None


class DisruptionBudgetStatus(msgspec.Struct, kw_only=True):
    pass


def check_budget(spec: DisruptionBudgetSpec) -> None:
    """Raises InvalidInput."""
    if not 1 <= len(spec.selector) <= MOST_LABELS:
        raise InvalidInput(
            f"spec.selector: {len(spec.selector)} labels are given",
            field="spec.selector",
            hint=f"give 1 to {MOST_LABELS} labels, like app: web",
        )
    check_labels(spec.selector, "spec.selector")
    if (spec.max_unavailable is None) == (spec.min_available is None):
        raise InvalidInput(
            "spec.max_unavailable: give either that or min_available",
            field="spec.max_unavailable",
            hint="set one of them to a number, and leave the other out",
        )


def words_of_labels(project: str | None, labels: Mapping[str, str]) -> list[str]:
    """The words by which workloads with these labels are found, and budgets that select by them."""
    return [f"{project}/{key}={value}" for key, value in sorted(labels.items())]


def _words(item: Stored) -> Iterable[str]:
    return words_of_labels(item.envelope.project, item.spec(DisruptionBudgetSpec).selector)[:1]


def _selector(obj: Object) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(dig(obj, "spec.selector", {}).items()))


DISRUPTION_BUDGET = Kind(
    name="disruptionbudget",
    plural="disruptionbudgets",
    title="disruption budget",
    summary="How many workloads of a group may be down together",
    spec=DisruptionBudgetSpec,
    status=DisruptionBudgetStatus,
    indexes={BUDGETS_BY_LABEL: _words},
    in_backups="kept",
    access=Access(readers="project"),
    admission=Admission(check=check_budget),
    display=Display(
        topic="Placement",
        columns=(
            NAME,
            Column("SELECTOR", _selector, flexible=True),
            Column("MAX UNAVAILABLE", text("spec.max_unavailable", "–"), align="right"),
            Column("MIN AVAILABLE", text("spec.min_available", "–"), align="right"),
            AGE,
        ),
    ),
)
