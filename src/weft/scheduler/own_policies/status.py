"""The health of users' own policies, as the condition Working of the placement policies that name them. Pure."""

from __future__ import annotations

from weft.contracts.journal import Event
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Item, View
from weft.kinds.placement_policy import PlacementPolicySpec
from weft.objects.envelope import Condition, set_condition
from weft.scheduler.own_policies.registry import OwnPolicies


def prepare_policies(policy: Item, own: OwnPolicies) -> None:
    """Start the workers that a placement policy needs."""
    spec = policy.spec(PlacementPolicySpec)
    for strategy in (spec.strategy, spec.serverless):
        own.prepare(strategy)


def plan_policy_status(view: View, own: OwnPolicies, now: float) -> list[Commit]:
    """Write for each placement policy whether the own policies that it names answer, where that changes."""
    commits = [_plan_one(item, own, now) for item in view.of_kind("placementpolicy").values() if not item.deleting]
    return [commit for commit in commits if commit is not None]


def _plan_one(policy: Item, own: OwnPolicies, now: float) -> Commit | None:
    spec, former = policy.spec(PlacementPolicySpec), policy.envelope.condition("Working")
    health = [*own.health(spec.strategy), *own.health(spec.serverless)]
    if not health and (former is None or former.status == "True"):
        return None
    failing = next(((name, one) for name, one in health if not one.working), None)
    working = Condition("Working", "True", "Answers", "", now, policy.envelope.generation)
    if failing is not None:
        name, one = failing
        message = f"{name}: {one.message}; it is skipped, and the server's strategy decides instead"
        working = Condition("Working", "False", one.reason, message, now, policy.envelope.generation)
    if former is not None and (former.status, former.reason) == (working.status, working.reason):
        return None
    envelope = edit(policy)
    if not set_condition(envelope, working):
        return None
    if failing is None:
        event = Event("Normal", "PolicyWorks", "the policy answers", envelope.ref, "scheduler")
    else:
        event = Event("Warning", working.reason, working.message, envelope.ref, "scheduler")
    return Commit(policy.key, [put(envelope)], [unchanged(policy)], [event])
