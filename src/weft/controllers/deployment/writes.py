"""What becomes of a deployment's plan: one commit that makes, changes, marks and deletes its instances. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.contracts.journal import Event
from weft.controllers.deployment.facts import NewInstance, Outcome
from weft.controllers.deployment.instance_state import merge_template
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.disruption.budgets import Allowance, guard
from weft.informer.quotas import ProjectQuota
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.deployment import TEMPLATES, DeploymentSpec, decode_template
from weft.kinds.fields.deployment.instance import (
    DEPLOYMENT_LABEL,
    DRAINING_LABEL,
    OWN_LABELS,
    PARKED_LABEL,
    REVISION_LABEL,
    instance_name,
)
from weft.kinds.fields.deployment.status import DeploymentStatus, Revision
from weft.kinds.migration import MIGRATION, MigrationSpec
from weft.kinds.parts.goal import UNPLACEABLE
from weft.kinds.parts.migration.verb import MIGRATION_MODES
from weft.kinds.parts.workload import WORKLOADS_BY_OWNER, WorkloadStatus
from weft.kinds.replication import REPLICATIONS_BY_SUBJECT
from weft.objects.envelope import Envelope
from weft.objects.identity import cut_name, object_key, short_id
from weft.objects.spec_change import plan_spec_change

SOURCE = "deployments"
FINALIZER = "deployment"
MOST_AT_ONCE = 80  # instances of a deleted deployment in one commit


def find_free_name(view: View, deployment: Item, status: DeploymentStatus, new: NewInstance) -> NewInstance:
    """The first try of an instance from ``new`` on whose name no other workload has."""
    adopted = deployment.spec(DeploymentSpec).adopt
    while (name := _name(status, deployment.envelope.name, new)) != adopted and view.get(_key(deployment, name)):
        new = msgspec.structs.replace(new, attempt=new.attempt + 1)
    return new


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
    name = cut_name(of.name, f"-{mark}")
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
