"""The instances of a deployment as its plan sees them: from workloads and services in, facts out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.controllers.deployment.facts import Instance, State
from weft.informer.disruption.budgets import Allowance
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.deployment import OWN, DeploymentSpec, decode_template
from weft.kinds.disruption_budget import words_of_labels
from weft.kinds.fields.deployment.instance import (
    DRAINING_LABEL,
    PARKED_LABEL,
    REVISION_LABEL,
    list_kept,
    read_instance_name,
)
from weft.kinds.fields.deployment.scaling import MOST_REPLICAS
from weft.kinds.fields.deployment.status import DeploymentStatus, Revision
from weft.kinds.parts.deployment.spread import spread_replicas
from weft.kinds.parts.goal import RESTARTING, STARTING, UNPLACEABLE
from weft.kinds.parts.nic import networks_of
from weft.kinds.parts.workload import WorkloadSpec, WorkloadStatus
from weft.kinds.service import NOT_CHECKED, SERVICES_BY_LABEL, ServiceSpec, ServiceStatus, is_matched
from weft.kinds.vm import VmSpec
from weft.objects.spec_change import plan_spec_change

UNCHECKED_SECONDS = (
    10.0  # after which a running instance that no node has checked counts: its node may be an older weft
)


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
    """Time since which no service sends new connections to one that leaves; None: they may still come."""
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
    deployment: Item,
    workload: Item,
    allowances: Sequence[Allowance],
    services: Sequence[Item],
    answers: tuple[tuple[int, bool], ...],
    now: float,
) -> Instance:
    """One of the deployment's VMs or containers as its plan sees it. ``services``: those that may match it."""
    envelope, status = workload.envelope, workload.status(WorkloadStatus)
    named = read_instance_name(deployment.envelope.name, envelope.name) or (0, MOST_REPLICAS, 1)
    label = envelope.labels.get(REVISION_LABEL, "")
    kept = is_kept(deployment, workload)
    if kept:
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
        node=status.node or "",
        draining_since=float(draining) if draining.isdigit() else None,
        departed_at=find_departed(workload, services) if draining.isdigit() else None,
        restarts=status.restarts,
        unplaced=f"{placed.reason}: {placed.message}" if is_refused and placed is not None else "",
        trouble=trouble,
        silent=silent,
        budgets=tuple(one.budget.key for one in allowances),
        held=next((one.text for one in allowances if not one.left), ""),
        in_place=_is_in_place(deployment, workload),
        kept=kept,
        answers=answers,
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
    is_to_start = status.reason in (STARTING, RESTARTING)
    if (status.phase == "Failed" or (status.phase == "Stopped" and status.reason)) and not is_to_start:
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
    status = workload.status(WorkloadStatus)
    kept = is_kept(deployment, workload)
    if status.phase != "Running" and not kept:
        return False
    revision = _find_revision(deployment, deployment.status(DeploymentStatus).revision)
    if revision is None:
        return False
    old, new = spec_of(workload), merge_template(spec_of(workload), make_spec(deployment, revision))
    modes = {change.mode for change in plan_spec_change(old, new, lambda: status.resize_limits)}
    return modes <= ({"live", "restart", "start"} if kept else {"live"})


def make_spec(deployment: Item, revision: Revision) -> WorkloadSpec:
    """The spec of the instances of a revision; shared, so don't change it."""
    spec = deployment.spec(DeploymentSpec)
    template: WorkloadSpec = decode_template(spec.workload, revision.template)
    return template if spec.adopt else spread_replicas(template, deployment.envelope.name, revision.number)


def merge_template(running: WorkloadSpec, template: WorkloadSpec) -> WorkloadSpec:
    """The template, with what an instance that runs has of its own: addresses, and a disk that never shrinks."""
    own = {name: getattr(running, name) for name in OWN if hasattr(running, name)}
    if networks_of(running.networks) == networks_of(template.networks):
        own["networks"] = running.networks
    if isinstance(running, VmSpec) and isinstance(template, VmSpec):
        own["disk"] = max(running.disk, template.disk)
    return msgspec.structs.replace(template, **own)


def _find_revision(deployment: Item, number: int) -> Revision | None:
    return next((one for one in deployment.status(DeploymentStatus).revisions if one.number == number), None)


def is_parked(workload: Item) -> bool:
    """Whether its deployment has stopped it, and not people."""
    return PARKED_LABEL in workload.envelope.labels


def is_kept(deployment: Item, workload: Item) -> bool:
    """Whether no rollout deletes it: it was there before, people named it, or it was promoted in the place of such a VM."""
    instances = (one.instance for one in deployment.status(DeploymentStatus).revisions)
    return workload.envelope.name in list_kept(deployment.spec(DeploymentSpec).adopt, instances)
