"""Keeps deployments: makes their instances, replaces lost ones, and rolls other versions out.

Reads deployments, their VMs and containers, services, disruption budgets and quotas; writes deployment.status, makes,
changes, marks and deletes instances. Woken by any of them, and by time. ``plan.py`` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.contracts.journal import Event
from weft.controllers.deployment.facts import Facts, Instance, NewInstance, Outcome, State
from weft.controllers.deployment.plan import plan_deployment
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.disruption.budgets import Allowance, Budgets, guard
from weft.informer.quotas import ProjectQuota, read_quota
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import spec_of
from weft.kinds.deployment import (
    DEPLOYMENT_LABEL,
    DRAINING_LABEL,
    MOST_REPLICAS,
    REVISION_LABEL,
    TEMPLATES,
    DeploymentSpec,
    DeploymentStatus,
    Revision,
    decode_template,
    instance_name,
    read_instance_name,
)
from weft.kinds.disruption_budget import words_of_labels
from weft.kinds.parts.goal import UNPLACEABLE
from weft.kinds.parts.workload import WORKLOADS_BY_OWNER, WorkloadSpec, WorkloadStatus
from weft.kinds.quota import quota_key
from weft.kinds.service import SERVICES_BY_LABEL, ServiceSpec, ServiceStatus, is_matched
from weft.objects.envelope import Envelope
from weft.objects.identity import object_key
from weft.objects.spec_change import plan_spec_change

SOURCE = "deployments"
FINALIZER = "deployment"
MOST_AT_ONCE = 80  # instances of a deleted deployment in one commit
_KEPT = (
    "run",
    "hold",
    "restart_generation",
    "pulls",
    "lease",
    "snapshots",
)  # of a running instance, in an update in place


class Deployments:
    name = SOURCE
    kinds = ("deployment", *TEMPLATES, "service")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "deployment":
            return (change.key,)
        if change.kind == "service":
            return _deployments_of(view, change) if has_changed(change, _ready_endpoints) else ()
        owner = change.item.envelope.owner_key("deployment")
        return (owner,) if owner is not None and has_changed(change, _stand_of) else ()

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
                commit, after = plan_one(view, item, budgets, now)
                plan.later |= {item.key: after} if after is not None else {}
            plan.commits += [commit] if commit is not None else []
            taken |= {write.key for write in commit.writes} if commit is not None else set()
        return plan


def plan_one(view: View, item: Item, budgets: Budgets, now: float) -> tuple[Commit | None, float | None]:
    """What to write for one deployment, and after how many seconds to plan it again even if nothing changes."""
    spec, status, of = item.spec(DeploymentSpec), item.status(DeploymentStatus), item.envelope
    found = {one.envelope.name: one for one in view.find(WORKLOADS_BY_OWNER, item.uid)}
    allowances = {one.key: budgets.find(one) for one in found.values()} if found else {}
    services = list_services(view, found.values())
    quota, fitting, excess = read_quota(view, of.project), None, ""
    if quota is not None:
        template = decode_template(spec.workload, spec.template)
        fitting, excess = quota.count_fitting(spec.workload, template, of.creator, MOST_REPLICAS)
    facts = Facts(
        name=of.name,
        spec=spec,
        status=status,
        instances=[
            read_instance(item, one, allowances[one.key], find_unready(one, services), now) for one in found.values()
        ],
        now=now,
        generation=of.generation,
        drain_seconds=max((one.spec(ServiceSpec).drain for one in services), default=0.0),
        left={one.budget.key: one.left for each in allowances.values() for one in each},
        fitting=fitting,
        excess=excess,
    )
    outcome = plan_deployment(facts)
    taken = [name for one in outcome.make if view.get(_key(item, name := _name(item, one))) is not None]
    if taken:
        return plan_blocked(item, taken[0]), 10.0
    touched = {
        allowance.budget.key: allowance for one in outcome.delete for allowance in allowances[found[one.name].key]
    }
    touched |= {
        allowance.budget.key: allowance for one in outcome.drain for allowance in allowances[found[one.name].key]
    }
    return plan_writes(item, found, outcome, now, quota, list(touched.values())), outcome.requeue_after


def list_services(view: View, workloads: Iterable[Item]) -> list[Item]:
    """The services that match one of ``workloads``."""
    found = {}
    for workload in workloads:
        of = workload.envelope
        for word in words_of_labels(of.project, of.labels):
            for service in view.find(SERVICES_BY_LABEL, word):
                if not service.deleting and is_matched(service.spec(ServiceSpec).selector, of.labels):
                    found[service.key] = service
    return list(found.values())


def find_unready(workload: Item, services: Iterable[Item]) -> str:
    """Why a service gives it no connections; "" if all do that match it."""
    for service in services:
        status = service.status(ServiceStatus)
        if status.phase == "Pending" or not is_matched(service.spec(ServiceSpec).selector, workload.envelope.labels):
            continue
        own = next((one for one in status.endpoints if one.workload.uid == workload.uid), None)
        if own is None and status.more:  # it may be one of those beyond the most
            continue
        if own is None or not own.ready:
            return f"service/{service.envelope.name}: {own.reason if own is not None else 'not checked yet'}"
    return ""


def read_instance(
    deployment: Item, workload: Item, allowances: Sequence[Allowance], unready: str, now: float
) -> Instance:
    """One of the deployment's VMs or containers as its plan sees it. ``unready``: why a service gives it no connections."""
    envelope, status = workload.envelope, workload.status(WorkloadStatus)
    named = read_instance_name(deployment.envelope.name, envelope.name) or (0, MOST_REPLICAS, 1)
    label = envelope.labels.get(REVISION_LABEL, "")
    state, since, trouble = read_state(workload, deployment.spec(DeploymentSpec).min_healthy, now)
    if state == "healthy" and unready:
        state, trouble = "coming", unready
    placed, draining = envelope.condition("Placed"), envelope.labels.get(DRAINING_LABEL, "")
    is_refused = placed is not None and placed.status == "False" and placed.reason in UNPLACEABLE and not status.node
    return Instance(
        name=envelope.name,
        revision=int(label) if label.isdigit() else named[0],
        slot=named[1],
        attempt=named[2],
        state=state,
        since=since,
        deleting=workload.deleting,
        draining_since=float(draining) if draining.isdigit() else None,
        restarts=status.restarts,
        unplaced=f"{placed.reason}: {placed.message}" if is_refused and placed is not None else "",
        trouble=trouble,
        budgets=tuple(one.budget.key for one in allowances),
        held=next((one.text for one in allowances if not one.left), ""),
        in_place=_is_in_place(deployment, workload),
    )


def read_state(workload: Item, min_healthy: float, now: float) -> tuple[State, float, str]:
    """Its state, since when, and what is wrong."""
    status, envelope = workload.status(WorkloadStatus), workload.envelope
    ready, healthy, current = map(envelope.condition, ("Ready", "Healthy", "Current"))
    since = ready.since if ready is not None else envelope.created_at
    trouble = ": ".join(filter(None, (status.reason, status.message)))
    if status.phase == "Unknown":
        return "lost", since, trouble
    if spec_of(workload).run != "run":
        return "rests", since, "people stopped it"
    if status.phase == "Failed" or (status.phase == "Stopped" and status.reason not in ("", "starting")):
        code = f"exit code {status.exit_code}" if status.exit_code is not None else ""
        return "failed", since, trouble or code
    if status.phase not in ("Running", "Migrate") or status.ready is False:
        return "coming", envelope.created_at, trouble or f"it is in phase {status.phase}"
    if current is not None and current.status == "False":
        return "coming", since, current.message
    if healthy is not None and healthy.status != "True":
        state: State = "unhealthy" if healthy.status == "False" else "coming"
        return state, healthy.since, healthy.message
    since = max(since, healthy.since) if healthy is not None else since
    if 0 <= now - since < min_healthy:  # a clock that was set back counts as enough
        return "coming", since, ""
    return "healthy", since, ""


def _is_in_place(deployment: Item, workload: Item) -> bool:
    """Whether it can have the template of the deployment's spec while it runs."""
    spec, status = deployment.spec(DeploymentSpec), workload.status(WorkloadStatus)
    if status.phase != "Running":
        return False
    revision = _find_revision(deployment, deployment.status(DeploymentStatus).revision)
    if revision is None:
        return False
    old, new = spec_of(workload), merge_template(spec_of(workload), decode_template(spec.workload, revision.template))
    return all(change.mode == "live" for change in plan_spec_change(old, new, lambda: status.resize_limits))


def merge_template(running: WorkloadSpec, template: WorkloadSpec) -> WorkloadSpec:
    """The template, with what an instance that runs has of its own."""
    own = {name: getattr(running, name) for name in _KEPT if hasattr(running, name)}
    return msgspec.structs.replace(template, **own)


def _find_revision(deployment: Item, number: int) -> Revision | None:
    return next((one for one in deployment.status(DeploymentStatus).revisions if one.number == number), None)


def plan_writes(
    deployment: Item,
    found: dict[str, Item],
    outcome: Outcome,
    now: float,
    quota: ProjectQuota | None,
    budgets: Sequence[Allowance],
) -> Commit | None:
    """One commit for the whole ``outcome``, None if nothing changes."""
    draft, status = Draft(deployment), outcome.status
    if status != deployment.status(DeploymentStatus):
        draft.change(deployment, status=status)
    revisions = {one.number: one for one in status.revisions}
    for new in outcome.make:
        draft.make(make_instance(deployment, revisions[new.revision], new, now))
    if outcome.make and quota is not None:
        quota.guard(draft)
    for one, number in outcome.change:
        _change(draft, deployment, found[one.name], revisions[number])
    for one in outcome.delete:
        draft.change(found[one.name], deleting_since=now)
    for one in outcome.drain:
        _label(draft, found[one.name], {DRAINING_LABEL: str(int(now))})
    for one in outcome.undrain:
        _label(draft, found[one.name], {DRAINING_LABEL: None})
    writes, preconditions = guard(budgets)
    draft.writes += writes
    draft.preconditions += preconditions
    events = [Event(kind, reason, text, deployment.envelope.ref, SOURCE) for kind, reason, text in outcome.events[:20]]
    return draft.commit(deployment.key, events)


def _label(draft: Draft, item: Item, labels: dict[str, str | None], spec: msgspec.Struct | None = None) -> None:
    """Write these labels of an instance; None takes one away."""
    kept = {key: value for key, value in item.envelope.labels.items() if key not in labels}
    new = kept | {key: value for key, value in labels.items() if value is not None}
    edited = Item(msgspec.structs.replace(item.envelope, labels=new))
    draft.change(edited, spec=spec)


def _change(draft: Draft, deployment: Item, item: Item, revision: Revision) -> None:
    workload = deployment.spec(DeploymentSpec).workload
    spec = merge_template(spec_of(item), decode_template(workload, revision.template))
    _label(draft, item, {REVISION_LABEL: str(revision.number), DRAINING_LABEL: None, **revision.labels}, spec)


def make_instance(deployment: Item, revision: Revision, new: NewInstance, now: float) -> Envelope:
    """The VM or container, as the API server would make it."""
    of, kind = deployment.envelope, TEMPLATES[deployment.spec(DeploymentSpec).workload]
    labels = {**revision.labels, DEPLOYMENT_LABEL: of.name, REVISION_LABEL: str(revision.number)}
    spec = decode_template(kind.name, revision.template)
    return kind.make(_name(deployment, new), spec, now, project=of.project, labels=labels, owner=of)


def plan_blocked(deployment: Item, name: str) -> Commit | None:
    """Report that another workload has an instance's name."""
    workload = deployment.spec(DeploymentSpec).workload
    status = msgspec.structs.replace(
        deployment.status(DeploymentStatus),
        reason="nameTaken",
        message=f"{workload}/{name} does not belong to this deployment, which waits until it is deleted",
        observed_generation=deployment.envelope.generation,
    )
    if status == deployment.status(DeploymentStatus):
        return None
    draft = Draft()
    draft.change(deployment, status=status)
    return draft.commit(
        deployment.key, [Event("Warning", "nameTaken", status.message, deployment.envelope.ref, SOURCE)]
    )


def plan_removal(view: View, deployment: Item, now: float) -> Commit | None:
    """Delete the instances of a deleted deployment, then release it."""
    own = view.find(WORKLOADS_BY_OWNER, deployment.uid)
    if not own:
        event = Event("Normal", "Deleted", f"{deployment.envelope.name} was deleted", deployment.envelope.ref, SOURCE)
        return Commit(deployment.key, [let_go(deployment, FINALIZER)], [unchanged(deployment)], [event])
    draft = Draft(deployment)
    for item in [item for item in own if not item.deleting][:MOST_AT_ONCE]:
        draft.change(item, deleting_since=now)
    return draft.commit(deployment.key)


def _name(deployment: Item, new: NewInstance) -> str:
    return instance_name(deployment.envelope.name, new.revision, new.slot, new.attempt)


def _key(deployment: Item, name: str) -> str:
    return object_key(deployment.spec(DeploymentSpec).workload, deployment.envelope.project, name)


def _ready_endpoints(service: Item) -> object:
    """What of a service concerns the deployments of its endpoints."""
    endpoints = service.status(ServiceStatus).endpoints
    return service.spec(ServiceSpec).drain, [(one.workload.uid, one.ready, one.reason) for one in endpoints]


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


def _stand_of(workload: Item) -> object:
    """The parts of an instance that concern its deployment."""
    status, of = workload.status(WorkloadStatus), workload.envelope
    conditions = [
        (one.type, one.status, one.reason, one.message)
        for one in of.conditions
        if one.type in ("Placed", "Ready", "Healthy", "Current")
    ]
    stand = (status.phase, status.node, status.ready, status.restarts, status.reason, status.exit_code)
    return of.uid, workload.deleting, stand, conditions, bytes(of.spec), of.labels, status.resize_limits
