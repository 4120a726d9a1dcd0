"""Leads the RebalancePolicy: asks the scheduler (a Report), and makes plans of its answers.

Reads the policy, reports, plans; writes the policy's status, makes Reports and RebalancePlans, and deletes its old plans. Woken by
any of those, and by time. A plan is made in the commit that writes the policy's status: never twice, whatever is killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.controllers.loop import Plan
from weft.controllers.rebalance.automatic import RebalanceOutcome, Seen, count_spent, plan_automatic
from weft.informer.commit import Commit, Draft
from weft.informer.view import Changed, Item, View
from weft.kinds.rebalance_plan import OVER, REBALANCE_PLAN, RebalancePlanActions, RebalancePlanSpec, RebalancePlanStatus
from weft.kinds.rebalance_policy import POLICY_LABEL, RebalancePolicySpec, RebalancePolicyStatus
from weft.kinds.report import REPORT, ReportStatus
from weft.objects.identity import object_key

KEPT_SECONDS = 7 * 86_400.0  # of a policy's plans that are over
KEPT = 50
PREFIX = "auto"  # of the names of its reports and plans


class RebalancePolicies:
    name = "rebalance policies"
    kinds = ("rebalancepolicy", "report", "rebalanceplan")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "report" and POLICY_LABEL not in change.item.envelope.labels:
            return ()
        return list(view.of_kind("rebalancepolicy"))

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            policy = view.get(key)
            if policy is None or policy.deleting:
                continue
            status = policy.status(RebalancePolicyStatus)
            seen = read_seen(view, policy, now)
            step = plan_automatic(name_prefix(policy), policy.spec(RebalancePolicySpec), status, seen, now)
            if commit := make_commit(view, policy, step, now):
                plan.commits.append(commit)
            plan.later[key] = step.wait
        return plan


def name_prefix(policy: Item) -> str:
    return f"{PREFIX}-{policy.uid[:8]}"


def read_seen(view: View, policy: Item, now: float) -> Seen:
    report = view.get(object_key("report", None, policy.status(RebalancePolicyStatus).report or "-"))
    mine = report is not None and report.envelope.labels.get(POLICY_LABEL) == policy.envelope.name
    answer = report.status(ReportStatus) if report is not None and mine else None
    plans = [
        (item.envelope.created_at, item.spec(RebalancePlanSpec))
        for item in list_plans(view, policy)
        if item.status(RebalancePlanStatus).started_at is not None  # of one that was refused nothing is spent
    ]
    return Seen(
        asked=mine,
        answer=answer if answer is not None and answer.phase == "Done" else None,
        other=next((item.envelope.name for item in view.of_kind("rebalanceplan").values() if _is_going(item)), ""),
        spent=count_spent(plans, now),
        undone=next(
            (
                (item.envelope.name, item.spec(RebalancePlanSpec).score_before)
                for item in list_plans(view, policy)
                if item.actions(RebalancePlanActions).undo
            ),
            None,
        ),
    )


def list_plans(view: View, policy: Item) -> list[Item]:
    """Those that the policy made, the newest first."""
    name = policy.envelope.name
    found = [one for one in view.of_kind("rebalanceplan").values() if one.envelope.labels.get(POLICY_LABEL) == name]
    return sorted(found, key=lambda one: (-one.envelope.created_at, one.key))


def _is_going(plan: Item) -> bool:
    return plan.actions(RebalancePlanActions).start and plan.status(RebalancePlanStatus).phase not in OVER


def make_commit(view: View, policy: Item, step: RebalanceOutcome, now: float) -> Commit | None:
    draft, labels = Draft(policy), {POLICY_LABEL: policy.envelope.name}
    creator = policy.envelope.creator
    if step.status != policy.status(RebalancePolicyStatus):
        draft.change(policy, status=step.status)
    if step.ask is not None:
        draft.make(REPORT.make(step.status.report, step.ask, now, creator=creator, labels=labels))
    if step.plan is not None:
        asked = RebalancePlanActions(start=True)
        made = REBALANCE_PLAN.make(step.status.plan, step.plan, now, creator=creator, labels=labels, actions=asked)
        draft.make(made)
    for number, item in enumerate(list_plans(view, policy)):
        ended = item.status(RebalancePlanStatus).ended_at
        if ended is not None and not item.deleting and (number >= KEPT or now - ended > KEPT_SECONDS):
            draft.delete(item)
            break
    return draft.commit(policy.key)
