"""Keeps deployments: makes their instances, replaces lost ones, and rolls other versions out.

Reads deployments, their VMs and containers, services, disruption budgets and quotas; writes deployment.status, makes,
changes, marks and deletes instances. Woken by any of them, and by time. ``plan.py`` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.contracts.history import History
from weft.contracts.journal import Event
from weft.controllers.deployment.facts import Facts, Instance, NewInstance, Outcome, State
from weft.controllers.deployment.observer import LOOK_SECONDS, Observed, Observer, find_pause, needs_history
from weft.controllers.deployment.plan import plan_deployment
from weft.controllers.deployment.requests import plan_scale
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.disruption.budgets import Allowance, Budgets, guard
from weft.informer.leader_lease import LeaderLease
from weft.informer.quotas import ProjectQuota, read_quota
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import spec_of
from weft.kinds.deployment import FIXED, TEMPLATES, DeploymentSpec, decode_template
from weft.kinds.disruption_budget import words_of_labels
from weft.kinds.fields.deployment.instance import (
    DEPLOYMENT_LABEL,
    DRAINING_LABEL,
    OWN_LABELS,
    PARKED_LABEL,
    REVISION_LABEL,
    count_instances,
    instance_name,
    read_instance_name,
)
from weft.kinds.fields.deployment.scaling import MOST_REPLICAS
from weft.kinds.fields.deployment.status import DeploymentStatus, Revision, mark_template
from weft.kinds.migration import MIGRATION, MigrationSpec
from weft.kinds.parts.goal import UNPLACEABLE
from weft.kinds.parts.migration.verb import MIGRATION_MODES
from weft.kinds.parts.nic import networks_of
from weft.kinds.parts.workload import WORKLOADS_BY_OWNER, WorkloadSpec, WorkloadStatus
from weft.kinds.quota import REASON as OVER_QUOTA
from weft.kinds.quota import quota_key
from weft.kinds.replication import REPLICATIONS_BY_SUBJECT
from weft.kinds.service import NOT_CHECKED, SERVICES_BY_LABEL, ServiceSpec, ServiceStatus, is_matched
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope
from weft.objects.errors import Unavailable
from weft.objects.identity import MAX_NAME, object_key, short_id
from weft.objects.spec_change import plan_spec_change

SOURCE = "deployments"
FINALIZER = "deployment"
FIGURE_SECONDS = 60.0  # for which a figure counts
MOST_AT_ONCE = 80  # instances of a deleted deployment in one commit
_KEPT = (*FIXED, "snapshots")  # of a running instance, in an update in place
UNCHECKED_SECONDS = (
    10.0  # after which a running instance that no node has checked counts: its node may be an older weft
)


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
        if not has_changed(change, _stand_of):
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
    """What to write for one deployment, and after how many seconds to plan it again even if nothing changes."""
    spec, status, of = item.spec(DeploymentSpec), item.status(DeploymentStatus), item.envelope
    found = {one.envelope.name: one for one in view.find(WORKLOADS_BY_OWNER, item.uid)}
    if spec.adopt and not status.revision and spec.adopt not in found:
        return plan_adoption(view, item), LOOK_SECONDS
    allowances = {one.key: budgets.find(one) for one in found.values()} if found else {}
    services = list_services(view, found.values())
    quota, fitting, excess = read_quota(view, of.project), None, ""
    if quota is not None:
        fits = [
            quota.count_fitting(spec.workload, one, of.creator, MOST_REPLICAS) for one in list_templates(spec, status)
        ]
        fitting, excess = min(fits)
    scaled, scaling = _scale(spec, status, observed, now)
    facts = Facts(
        name=of.name,
        spec=msgspec.structs.replace(spec, replicas=scaled) if scaled is not None else spec,
        status=status,
        instances=[
            read_instance(item, one, allowances[one.key], services, now)
            for one in found.values()
            if not (one.envelope.name == spec.adopt and spec_of(one).run == "stop" and _is_parked(one))
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
    )
    outcome = plan_deployment(facts)
    if scaled is None:
        outcome.status.scaled, outcome.status.scaling = None, ""
    elif (scaled, scaling) != (status.scaled, status.scaling):
        if scaled != status.scaled:
            outcome.events.append(("Normal", "Scaled", f"{count_instances(scaled)} wanted: {scaling}"))
            outcome.status.scaled_at = now
        outcome.status.scaled, outcome.status.scaling = scaled, scaling
    outcome.make = [find_free_name(view, item, outcome.status, one) for one in outcome.make]
    if quota is not None:
        fit_changes(quota, item, found, outcome)
    touched = {
        allowance.budget.key: allowance for one in outcome.delete for allowance in allowances[found[one.name].key]
    }
    touched |= {
        allowance.budget.key: allowance for one in outcome.drain for allowance in allowances[found[one.name].key]
    }
    after = outcome.requeue_after
    if needs_history(item):
        after = find_pause(item) if after is None else min(after, find_pause(item))
    return plan_writes(item, found, outcome, now, quota, list(touched.values())), after


def list_templates(spec: DeploymentSpec, status: DeploymentStatus) -> list[WorkloadSpec]:
    """Those that the next instances may be made of."""
    numbers = {*status.slots, status.revision}
    templates = [one.template for one in status.revisions if one.number in numbers]
    if (mark_template(spec.template, spec.labels), spec.rollout) != (status.template, status.rollout):
        templates.append(spec.template)
    return [decode_template(spec.workload, one) for one in templates or [spec.template]]


def find_free_name(view: View, deployment: Item, status: DeploymentStatus, new: NewInstance) -> NewInstance:
    """The first try of an instance from ``new`` on whose name no other workload has."""
    adopted = deployment.spec(DeploymentSpec).adopt
    while (name := _name(status, deployment.envelope.name, new)) != adopted and view.get(_key(deployment, name)):
        new = msgspec.structs.replace(new, attempt=new.attempt + 1)
    return new


def fit_changes(quota: ProjectQuota, deployment: Item, found: dict[str, Item], outcome: Outcome) -> None:
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


def find_unready(workload: Item, services: Iterable[Item], now: float) -> tuple[str, bool]:
    """Why a service gives it no connections, "" if all do that match it; and whether it only says nothing to a service's check,
    though it may get connections."""
    found = ("", False)
    for service in services:
        status = service.status(ServiceStatus)
        if status.phase == "Pending" or not is_matched(service.spec(ServiceSpec).selector, workload.envelope.labels):
            continue
        own = next((one for one in status.endpoints if one.workload.uid == workload.uid), None)
        if own is None and status.more:  # it may be one of those beyond the most
            continue
        ready = workload.envelope.condition("Ready")
        is_old = ready is not None and not 0 <= now - ready.since < UNCHECKED_SECONDS
        if own is not None and own.reason == NOT_CHECKED and is_old:
            continue
        if own is not None and own.silent and own.weight:
            found = found[0], True
        elif own is None or not (own.ready or own.weight):
            found = f"service/{service.envelope.name}: {own.reason if own is not None else NOT_CHECKED}", False
            if own is None or not own.silent:
                return found
            found = found[0], True
    return found


def find_departed(workload: Item, services: Iterable[Item]) -> float | None:
    """Since when no service sends new connections to one that leaves; None: they may still come."""
    moments = [0.0]
    for service in services:
        if not is_matched(service.spec(ServiceSpec).selector, workload.envelope.labels):
            continue
        status = service.status(ServiceStatus)
        own = next((one for one in status.endpoints if one.workload.uid == workload.uid), None)
        # One that isn't among the endpoints gets nothing, unless the service doesn't say which these are.
        if own is None and not status.more and status.phase != "Pending":
            continue
        if own is None or own.departed_at is None:
            return None
        moments.append(own.departed_at)
    return max(moments)


def read_instance(
    deployment: Item, workload: Item, allowances: Sequence[Allowance], services: Sequence[Item], now: float
) -> Instance:
    """One of the deployment's VMs or containers as its plan sees it. ``services``: those that may match it."""
    envelope, status = workload.envelope, workload.status(WorkloadStatus)
    named = read_instance_name(deployment.envelope.name, envelope.name) or (0, MOST_REPLICAS, 1)
    label = envelope.labels.get(REVISION_LABEL, "")
    kept = deployment.status(DeploymentStatus).revisions
    if envelope.name in (deployment.spec(DeploymentSpec).adopt, *(one.instance for one in kept if one.instance)):
        named = (named[0], 0, 1)
    state, since, trouble = read_state(workload, deployment.spec(DeploymentSpec).min_healthy, now)
    unready, silent = find_unready(workload, services, now) if state == "healthy" else ("", False)
    if unready:
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
        departed_at=find_departed(workload, services) if draining.isdigit() else None,
        restarts=status.restarts,
        unplaced=f"{placed.reason}: {placed.message}" if is_refused and placed is not None else "",
        trouble=trouble,
        silent=silent,
        budgets=tuple(one.budget.key for one in allowances),
        held=next((one.text for one in allowances if not one.left), ""),
        in_place=_is_in_place(deployment, workload),
        adopted=envelope.name == deployment.spec(DeploymentSpec).adopt,
    )


def read_state(workload: Item, min_healthy: float, now: float) -> tuple[State, float, str]:
    """Its state, since when, and what is wrong."""
    status, envelope = workload.status(WorkloadStatus), workload.envelope
    ready, healthy, current = map(envelope.condition, ("Ready", "Healthy", "Current"))
    since = ready.since if ready is not None else envelope.created_at
    reason = "" if status.reason == "restarting" and status.message else status.reason  # the message says that, too
    trouble = ": ".join(filter(None, (reason, status.message)))
    if status.phase == "Unknown":  # an instance on an autonomous node isn't replaced
        return "lost", now if status.reason == "nodeAutonomous" else since, trouble
    if spec_of(workload).run != "run":
        return "rests", since, "people stopped it"
    if status.phase == "Failed" or (status.phase == "Stopped" and status.reason not in ("", "starting")):
        code = f"exit code {status.exit_code}" if status.exit_code is not None else ""
        return "failed", since, trouble or code
    if status.phase not in ("Running", "Migrate") or status.ready is False:
        return "coming", envelope.created_at, trouble
    if status.observed_generation < envelope.generation or status.reason in ("restarting", "stopping"):
        return "coming", envelope.created_at, trouble
    if current is not None and (current.status == "False" or current.generation < envelope.generation):
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
    is_adopted = workload.envelope.name == spec.adopt
    if status.phase != "Running" and not is_adopted:
        return False
    revision = _find_revision(deployment, deployment.status(DeploymentStatus).revision)
    if revision is None:
        return False
    old, new = spec_of(workload), merge_template(spec_of(workload), decode_template(spec.workload, revision.template))
    modes = {change.mode for change in plan_spec_change(old, new, lambda: status.resize_limits)}
    return modes <= ({"live", "restart", "start"} if is_adopted else {"live"})


def merge_template(running: WorkloadSpec, template: WorkloadSpec) -> WorkloadSpec:
    """The template, with what an instance that runs has of its own: addresses, and a disk that never shrinks."""
    own = {name: getattr(running, name) for name in _KEPT if hasattr(running, name)}
    if networks_of(running.networks) == networks_of(template.networks):
        own["networks"] = running.networks
    if isinstance(running, VmSpec) and isinstance(template, VmSpec):
        own["disk"] = max(running.disk, template.disk)
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
    for item in found.values():
        if migration := make_migration(deployment, status, item, now):
            draft.make(migration)
    if status != deployment.status(DeploymentStatus):
        draft.change(deployment, status=status)
    revisions = {one.number: one for one in status.revisions}
    adopted = deployment.spec(DeploymentSpec).adopt
    for new in outcome.make:
        name = _name(status, deployment.envelope.name, new)
        if name == adopted and name in found:
            own: dict[str, str | None] = {DRAINING_LABEL: None, PARKED_LABEL: None}
            _label(draft, found[name], own, msgspec.structs.replace(spec_of(found[name]), run="run"))
        else:
            draft.make(make_instance(deployment, revisions[new.revision], name, now))
    if (outcome.make or outcome.change) and quota is not None:
        quota.guard(draft)
    for one, number in outcome.change:
        _change(draft, deployment, found[one.name], revisions[number])
    for one in outcome.delete:
        if one.name == adopted:
            parked = msgspec.structs.replace(spec_of(found[one.name]), run="stop")
            _label(draft, found[one.name], {PARKED_LABEL: "true"}, parked)
        else:
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


def _is_parked(workload: Item) -> bool:
    """Whether its deployment has stopped it, and not people."""
    return PARKED_LABEL in workload.envelope.labels


def _label(draft: Draft, item: Item, labels: dict[str, str | None], spec: msgspec.Struct | None = None) -> None:
    """Write these labels of an instance; None takes one away."""
    kept = {key: value for key, value in item.envelope.labels.items() if key not in labels}
    new = kept | {key: value for key, value in labels.items() if value is not None}
    edited = Item(msgspec.structs.replace(item.envelope, labels=new))
    draft.change(edited, spec=spec)


def _change(draft: Draft, deployment: Item, item: Item, revision: Revision) -> None:
    workload = deployment.spec(DeploymentSpec).workload
    old, limits = spec_of(item), item.status(WorkloadStatus).resize_limits
    spec = merge_template(old, decode_template(workload, revision.template))
    if any(change.mode in ("restart", "start") for change in plan_spec_change(old, spec, lambda: limits)):
        spec.restart_generation += 1
    _label(draft, item, {REVISION_LABEL: str(revision.number), DRAINING_LABEL: None, **revision.labels}, spec)


def make_migration(deployment: Item, status: DeploymentStatus, item: Item, now: float) -> Envelope | None:
    """A live migration of an instance that can't take a change where it is, once for each change; None if it need not."""
    current, of = item.envelope.condition("Current"), item.envelope
    lacks = current is not None and current.status == "False" and current.reason in UNPLACEABLE
    is_new = of.labels.get(REVISION_LABEL) == str(status.revision) and status.stage == "roll"
    migrates = deployment.spec(DeploymentSpec).strategy.live_migrate and MIGRATION_MODES[of.kind][0] == "live"
    mark = short_id(f"{of.uid}/{of.generation}")[:6]
    name = f"{of.name[: MAX_NAME - 1 - len(mark)]}-{mark}"
    if not (lacks and is_new and migrates) or item.status(WorkloadStatus).migration or name in status.migrated:
        return None
    status.migrated = [*status.migrated, name]
    spec = MigrationSpec(workload=f"vm/{of.name}", reason=f"update of deployment/{deployment.envelope.name}")
    return MIGRATION.make(name, spec, now, project=of.project, creator=of.creator)


def make_instance(deployment: Item, revision: Revision, name: str, now: float) -> Envelope:
    """The VM or container, as the API server would make it."""
    of, kind = deployment.envelope, TEMPLATES[deployment.spec(DeploymentSpec).workload]
    labels = {**revision.labels, DEPLOYMENT_LABEL: of.name, REVISION_LABEL: str(revision.number)}
    spec = decode_template(kind.name, revision.template)
    return kind.make(name, spec, now, project=of.project, labels=labels, owner=of)


def plan_adoption(view: View, deployment: Item) -> Commit | None:
    """Make the VM that it adopts its first instance."""
    spec, of = deployment.spec(DeploymentSpec), deployment.envelope
    vm = view.get(_key(deployment, spec.adopt))
    if vm is None or vm.deleting or vm.envelope.owner is not None:
        why = "does not exist" if vm is None or vm.deleting else "belongs to another object already"
        return plan_blocked(deployment, f"vm/{spec.adopt} {why}, so it can't be adopted")
    replicated = next(iter(view.find(REPLICATIONS_BY_SUBJECT, vm.key)), None)
    if replicated is not None:  # which stops it for good where its copy is promoted, and a deployment would start it
        why = f"is replicated by replication/{replicated.envelope.name}: delete that first"
        return plan_blocked(deployment, f"vm/{spec.adopt} {why}", "isReplicated")
    draft = Draft(deployment)
    own = {**vm.envelope.labels, **spec.labels, DEPLOYMENT_LABEL: of.name, REVISION_LABEL: "1"}
    draft.change(Item(msgspec.structs.replace(vm.envelope, labels=own, owner=of.ref)))
    text = f"vm/{spec.adopt} is its first instance now"
    return draft.commit(deployment.key, [Event("Normal", "Adopted", text, of.ref, SOURCE)])


def plan_blocked(deployment: Item, why: str, reason: str = "nameTaken") -> Commit | None:
    """Report why it can't go on."""
    status = msgspec.structs.replace(
        deployment.status(DeploymentStatus),
        reason=reason,
        message=why,
    )
    if status == deployment.status(DeploymentStatus):
        return None
    draft = Draft()
    draft.change(deployment, status=status)
    return draft.commit(deployment.key, [Event("Warning", reason, status.message, deployment.envelope.ref, SOURCE)])


def plan_removal(view: View, deployment: Item, now: float) -> Commit | None:
    """Delete the instances of a deleted deployment, then release it."""
    own = view.find(WORKLOADS_BY_OWNER, deployment.uid)
    if not own:
        event = Event("Normal", "Deleted", f"{deployment.envelope.name} was deleted", deployment.envelope.ref, SOURCE)
        return Commit(deployment.key, [let_go(deployment, FINALIZER)], [unchanged(deployment)], [event])
    draft = Draft(deployment)
    for item in [item for item in own if not item.deleting][:MOST_AT_ONCE]:
        if item.envelope.name == deployment.spec(DeploymentSpec).adopt:  # it goes on without
            kept = {key: value for key, value in item.envelope.labels.items() if not key.startswith(OWN_LABELS)}
            draft.change(Item(msgspec.structs.replace(item.envelope, labels=kept, owner=None)))
        else:
            draft.change(item, deleting_since=now)
    return draft.commit(deployment.key)


def _name(status: DeploymentStatus, deployment: str, new: NewInstance) -> str:
    own = next((one.instance for one in status.revisions if one.number == new.revision), "")
    is_first = (new.slot, new.attempt) == (0, 1)
    return own if own and is_first else instance_name(deployment, new.revision, new.slot, new.attempt)


def _key(deployment: Item, name: str) -> str:
    return object_key(deployment.spec(DeploymentSpec).workload, deployment.envelope.project, name)


def _ready_endpoints(service: Item) -> object:
    """What of a service concerns the deployments of its endpoints."""
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
