"""How many workloads a disruption budget lets weft take down now, as controllers and scheduler read it.

A commit that takes one down writes its budgets again, unchanged (``guard``): of two commits that counted on the same budget the
second one fails, and is planned anew on what the first one left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from weft.contracts.store import Precondition, Write
from weft.informer.commit import put, unchanged
from weft.informer.view import Item, View
from weft.informer.workloads import record_of, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationReport, AllocationSpec
from weft.kinds.disruption_budget import BUDGETS_BY_LABEL, DISRUPTION_BUDGET, DisruptionBudgetSpec, words_of_labels
from weft.kinds.fields.lease import LEASE_ENDED
from weft.kinds.migration import ENDED, MIGRATIONS_BY_WORKLOAD, MigrationSpec, MigrationStatus, stands_still
from weft.kinds.parts.workload import WORKLOADS_BY_LABEL, WorkloadStatus

MOST_BUDGETS = 32  # whose first label is the same; if there are more, nobody with that label goes down


class Allowance(msgspec.Struct, eq=False):
    """Number of workloads that one budget lets go down."""

    budget: Item
    members: int
    down: int  # of its members, for whatever reason
    most: int  # of them that may be down

    @property
    def left(self) -> int:
        return max(0, self.most - self.down)

    @property
    def text(self) -> str:
        """``disruptionbudget/web lets 1 of 3 be down, and 1 is``"""
        are = "is" if self.down == 1 else "are"
        name = f"{DISRUPTION_BUDGET.name}/{self.budget.envelope.name}"
        if not self.members:
            return f"{name} is one of more than {MOST_BUDGETS} with the same first label; delete some"
        return f"{name} lets {self.most} of {self.members} be down, and {self.down} {are}"


class Budgets:
    """The budgets of ``view`` as it is now; each is counted once, when it is first needed."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.allowances: dict[str, Allowance] = {}  # by the budget's key, or the label of too many; those read so far

    def find(self, workload: Item) -> list[Allowance]:
        """Those that count ``workload``; none if it rests, since nobody misses it then."""
        of = workload.envelope
        if not of.labels or not self._view.of_kind(DISRUPTION_BUDGET.name):
            return []
        words = words_of_labels(of.project, of.labels)
        if (
            crowd := next((word for word in words if self._view.count(BUDGETS_BY_LABEL, word) > MOST_BUDGETS), None)
        ) is not None:
            if crowd not in self.allowances:
                self.allowances[crowd] = Allowance(self._view.find(BUDGETS_BY_LABEL, crowd)[0], 0, 0, 0)
            return [self.allowances[crowd]]
        found = [item for word in words for item in self._view.find(BUDGETS_BY_LABEL, word)]
        budgets = [item for item in found if not item.deleting and selects(item, workload)]
        if not budgets or _rests(self._view, workload):
            return []
        return [self.allowances.get(item.key) or self._count(item) for item in budgets]

    def _count(self, budget: Item) -> Allowance:
        spec = budget.spec(DisruptionBudgetSpec)
        members = list(self._list_members(budget))
        down = sum(not is_up(self._view, member) for member in members)
        most = spec.max_unavailable if spec.min_available is None else len(members) - spec.min_available
        allowance = self.allowances[budget.key] = Allowance(budget, len(members), down, max(0, most or 0))
        return allowance

    def _list_members(self, budget: Item) -> Iterator[Item]:
        """The workloads that it counts: all with its labels but those that go or have ended."""
        word = words_of_labels(budget.envelope.project, budget.spec(DisruptionBudgetSpec).selector)[0]
        for workload in self._view.find(WORKLOADS_BY_LABEL, word):
            status = workload.status(WorkloadStatus)
            over = status.reason == LEASE_ENDED or (status.ended and record_of(workload).runs_once(spec_of(workload)))
            if selects(budget, workload) and not workload.deleting and not over:
                yield workload


def guard(allowances: Iterable[Allowance]) -> tuple[list[Write], list[Precondition]]:
    """Guard a commit that takes workloads of these budgets down: its further writes, and what it relies on."""
    budgets = list(dict.fromkeys(allowance.budget for allowance in allowances))
    return [put(item.envelope) for item in budgets], [unchanged(item) for item in budgets]


def selects(budget: Item, workload: Item) -> bool:
    return budget.spec(DisruptionBudgetSpec).selector.items() <= workload.envelope.labels.items()


def is_up(view: View, workload: Item) -> bool:
    """Whether it runs on a node and is about to stay so: nothing suspends, removes or stops it, also not to migrate it."""
    for item in view.find(MIGRATIONS_BY_WORKLOAD, workload.key):
        spec, status = item.spec(MigrationSpec), item.status(MigrationStatus)
        waits = spec.not_before is not None and status.started_at is None
        if status.phase not in ENDED and not waits and stands_still(spec):
            return False
    return any(is_running(item) for item in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid))


def _rests(view: View, workload: Item) -> bool:
    """Whether it is down and isn't about to come up by itself."""
    places = view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)
    return all(place.report(AllocationReport).state in ("stopped", "failed", "suspended") for place in places)


def is_running(allocation: Item) -> bool:
    """Whether its guest runs on its node, and nothing is about to end that."""
    spec, report = allocation.spec(AllocationSpec), allocation.report(AllocationReport)
    if allocation.deleting or spec.desired != "run" or (spec.lease is not None and spec.lease.suspension is not None):
        return False
    return report.state == "running" and report.health != "unhealthy" and report.incarnation >= spec.incarnation
