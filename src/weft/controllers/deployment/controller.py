"""Keeps deployments: makes their instances, replaces lost ones, and rolls other versions out.

Reads deployments, their VMs and containers, services, disruption budgets and quotas; writes deployment.status, makes,
changes, marks and deletes instances. Woken by any of them, and by time. ``plan.py`` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.contracts.history import History
from weft.controllers.deployment.facts import DeploymentFacts, DeploymentOutcome
from weft.controllers.deployment.handover import find_alone, find_holder
from weft.controllers.deployment.instance_state import is_parked, list_services, merge_template, read_instance
from weft.controllers.deployment.observer import LOOK_SECONDS, Observed, Observer, find_pause, needs_history
from weft.controllers.deployment.plan import plan_deployment
from weft.controllers.deployment.requests import plan_scale
from weft.controllers.deployment.writes import (
    SOURCE,
    find_free_name,
    plan_adoption,
    plan_removal,
    plan_writes,
)
from weft.controllers.loop import Plan
from weft.controllers.workload.ports import list_ports, read_answers
from weft.informer.commit import Commit
from weft.informer.disruption.budgets import Budgets
from weft.informer.leader_lease import LeaderLease
from weft.informer.quotas import ProjectQuota, read_quota
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import spec_of
from weft.kinds.deployment import TEMPLATES, DeploymentActions, DeploymentMarks, DeploymentSpec, decode_template
from weft.kinds.fields.deployment.instance import (
    count_instances,
)
from weft.kinds.fields.deployment.scaling import MOST_REPLICAS
from weft.kinds.fields.deployment.status import DeploymentStatus, mark_template
from weft.kinds.node import NodeActions, NodeStatus, find_cordon
from weft.kinds.parts.deployment.spread import names_places
from weft.kinds.parts.workload import WORKLOADS_BY_OWNER, WorkloadSpec, WorkloadStatus
from weft.kinds.quota import REASON as OVER_QUOTA
from weft.kinds.quota import quota_key
from weft.kinds.service import ServiceSpec, ServiceStatus
from weft.objects.errors import Unavailable
from weft.objects.identity import object_key

FIGURE_SECONDS = 60.0  # for which a figure counts


class Deployments:
    name = SOURCE
    kinds = ("deployment", *TEMPLATES, "service")

    def __init__(self, lease: LeaderLease, history: History | Unavailable) -> None:
        """``history``: or why there is none."""
        self._view, self._clock, self._observer = lease.cache.view, lease.clock, Observer(history)

    async def observe(self) -> None:
        """Begin to ask the history what plans need of it: they go on without an answer until it is there."""
        self._observer.refresh(self._view, self._clock.now())

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "deployment":
            return (change.key,)
        if change.kind == "service":
            return _deployments_of(view, change) if has_changed(change, _ready_endpoints) else ()
        if not has_changed(change, _deployment_relevant_state):
            return ()
        # The owner before counts, too: a deleted deployment waits until the VM that it adopted is let go.
        owners = [one.envelope.owner_key("deployment") for one in (change.old, change.new) if one is not None]
        return dict.fromkeys(owner for owner in owners if owner is not None)

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan, budgets, taken = Plan(), Budgets(view), set[str]()
        for item in [item for key in keys if (item := view.get(key)) is not None]:
            project = item.envelope.project
            if item.deleting:
                commit = plan_removal(view, item, now)
            elif quota_key(project) in taken or any(one.budget.key in taken for one in budgets.allowances.values()):
                plan.later[item.key] = 0.0  # another deployment's instances count by then
                continue
            else:
                commit, after = plan_one(view, item, budgets, self._observer.find(item), now)
                plan.later |= {item.key: after} if after is not None else {}
            plan.commits += [commit] if commit is not None else []
            taken |= {write.key for write in commit.writes} if commit is not None else set()
        return plan


def plan_one(
    view: View, item: Item, budgets: Budgets, observed: Observed, now: float
) -> tuple[Commit | None, float | None]:
    """The commit for one deployment, and the seconds until it is planned again even if nothing changes."""
    spec, status, of = item.spec(DeploymentSpec), item.status(DeploymentStatus), item.envelope
    found = {one.envelope.name: one for one in view.find(WORKLOADS_BY_OWNER, item.uid)}
    if spec.adopt and not status.revision and spec.adopt not in found:
        return plan_adoption(view, item), LOOK_SECONDS
    allowances = {one.key: budgets.find(one) for one in found.values()} if found else {}
    services = list_services(view, found.values())
    quota, fitting, excess = read_quota(view, of.project), None, ""
    if quota is not None:
        fits = [quota.count_fitting(spec.workload, one, of.creator, MOST_REPLICAS) for one in list_templates(item)]
        fitting, excess = min(fits)
    scaled, scaling = _scale(spec, status, observed, now)
    holder = find_holder(item, found) if spec.adopt else None
    facts = DeploymentFacts(
        name=of.name,
        spec=msgspec.structs.replace(spec, replicas=scaled) if scaled is not None else spec,
        status=status,
        actions=item.actions(DeploymentActions),
        author=item.marks(DeploymentMarks).author,
        instances=[
            read_instance(item, one, allowances[one.key], services, read_answers(view, one) if spec.adopt else (), now)
            for one in found.values()
            if not (spec_of(one).run == "stop" and is_parked(one))
        ],
        now=now,
        generation=of.generation,
        drain_seconds=max((one.spec(ServiceSpec).drain for one in services), default=0.0),
        left={one.budget.key: one.left for each in allowances.values() for one in each},
        fitting=fitting,
        excess=excess,
        verdict=observed.verdict,
        judged=observed.judged,
        answered=observed.since is not None,
        trouble=observed.trouble,
        nodes=count_nodes(view) if is_spread(item, len(found)) else 0,
        served=bool(services),
        ports=list_ports(holder),
        alone=find_alone(holder),
    )
    outcome = plan_deployment(facts)
    if scaled is None:
        outcome.status.scaled, outcome.status.scaling = None, ""
    elif (scaled, scaling) != (status.scaled, status.scaling):
        if scaled != status.scaled:
            outcome.events.append(("Normal", "Scaled", f"{count_instances(scaled)} wanted: {scaling}"))
            outcome.status.scaled_at = now
        outcome.status.scaled, outcome.status.scaling = scaled, scaling
    outcome.make = [find_free_name(view, item, outcome.status, found, one) for one in outcome.make]
    if quota is not None:
        fit_changes(quota, item, found, outcome)
    touched = {
        allowance.budget.key: allowance for one in outcome.delete for allowance in allowances[found[one.name].key]
    }
    touched |= {
        allowance.budget.key: allowance for one in outcome.drain for allowance in allowances[found[one.name].key]
    }
    commit = plan_writes(view, item, found, outcome, now, quota, list(touched.values()))
    after = outcome.requeue_after
    if needs_history(item):
        after = find_pause(item) if after is None else min(after, find_pause(item))
    return commit, after


def is_spread(deployment: Item, instances: int) -> bool:
    """Whether the instances that it has now, between two rollouts, are spread over nodes by default."""
    spec, status = deployment.spec(DeploymentSpec), deployment.status(DeploymentStatus)
    return instances > 1 and not (spec.adopt or status.stage or names_places(spec.template))


def count_nodes(view: View) -> int:
    """Those that take workloads."""
    nodes = [(one.actions(NodeActions), one.status(NodeStatus)) for one in view.of_kind("node").values()]
    return sum(status.phase == "Ready" and not find_cordon(asked, status) for asked, status in nodes)


def list_templates(deployment: Item) -> list[WorkloadSpec]:
    """Those that the next instances may be made of."""
    spec, status = deployment.spec(DeploymentSpec), deployment.status(DeploymentStatus)
    asked = deployment.actions(DeploymentActions)
    numbers = {*status.slots, status.revision}
    templates = [one.template for one in status.revisions if one.number in numbers]
    if (mark_template(spec.template, spec.labels), asked.rollout) != (status.template, status.rollout):
        templates.append(spec.template)
    return [decode_template(spec.workload, one) for one in templates or [spec.template]]


def fit_changes(quota: ProjectQuota, deployment: Item, found: dict[str, Item], outcome: DeploymentOutcome) -> None:
    """Leave out the changes in place that the project's quota has no amounts for."""
    kind, status = deployment.spec(DeploymentSpec).workload, outcome.status
    revisions = {one.number: one for one in status.revisions}
    kept = []
    for one, number in outcome.change:
        item = found[one.name]
        spec = merge_template(spec_of(item), decode_template(kind, revisions[number].template))
        quota, excess = quota.count_change(item, spec)
        if not excess:
            kept.append((one, number))
            continue
        status.slots[one.slot] = one.revision
        status.reason, status.message = OVER_QUOTA, excess
        outcome.requeue_after = LOOK_SECONDS
    outcome.change = kept


def _scale(spec: DeploymentSpec, status: DeploymentStatus, observed: Observed, now: float) -> tuple[int | None, str]:
    """How many instances a figure wants, and why; None if people say it."""
    scale = spec.autoscale
    if scale is None:
        return None, ""
    present = status.scaled if status.scaled is not None else spec.replicas
    is_fresh = 0 <= now - observed.figure_at < FIGURE_SECONDS
    wanted, why = plan_scale(scale, present, observed.figure if is_fresh else None, status.scaled_at, now)
    return wanted, observed.figure_trouble or why


def _ready_endpoints(service: Item) -> object:
    """The part of a service that concerns the deployments of its endpoints."""
    endpoints = service.status(ServiceStatus).endpoints
    return service.spec(ServiceSpec).drain, [
        (one.workload.uid, one.ready or one.weight > 0, one.reason, one.departed_at) for one in endpoints
    ]


def _deployments_of(view: View, change: Changed) -> list[str]:
    """The deployments with endpoints of a service, now or before."""
    found: dict[str, None] = {}
    for item in (one for one in (change.old, change.new) if one is not None):
        for endpoint in item.status(ServiceStatus).endpoints:
            ref = endpoint.workload
            workload = view.get(object_key(ref.kind, ref.project, ref.name))
            if workload is not None and (owner := workload.envelope.owner_key("deployment")) is not None:
                found[owner] = None
    return list(found)


def _deployment_relevant_state(workload: Item) -> object:
    """The parts of an instance that concern its deployment."""
    status, of = workload.status(WorkloadStatus), workload.envelope
    conditions = [
        (one.type, one.status, one.reason, one.message)
        for one in of.conditions
        if one.type in ("Placed", "Ready", "Healthy", "Current")
    ]
    stand = (status.phase, status.node, status.ready, status.restarts, status.reason, status.exit_code)
    return of.uid, workload.deleting, stand, conditions, bytes(of.spec), of.labels, status.resize_limits
