"""Turn a deployment's plan into one commit that makes, changes, marks and deletes its instances. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from weft.contracts.journal import Event
from weft.contracts.trace.context import pass_on
from weft.controllers.deployment.facts import DeploymentOutcome, NewInstance
from weft.controllers.deployment.handover import LOOK_SECONDS, InstanceWrite, Writes, find_holder, plan_handover
from weft.controllers.deployment.instance_state import is_kept, is_parked, make_spec, merge_template
from weft.controllers.deployment.ports import is_asking
from weft.controllers.workload.ports import ask_ports, list_ports
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.disruption.budgets import Allowance, guard
from weft.informer.quotas import ProjectQuota
from weft.informer.view import Item, View
from weft.informer.workloads import count_starts
from weft.kinds.deployment import IS_REPLICATED, NAME_TAKEN, TEMPLATES, DeploymentSpec
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
from weft.kinds.parts.workload import WORKLOADS_BY_OWNER, WorkloadActions, WorkloadStatus
from weft.kinds.replication import REPLICATIONS_BY_SUBJECT
from weft.objects.envelope import Envelope, merge_part
from weft.objects.identity import cut_name, object_key, short_id
from weft.objects.spec_change import plan_spec_change

SOURCE = "deployments"
FINALIZER = "deployment"
MOST_AT_ONCE = 80  # instances of a deleted deployment in one commit


def find_free_name(
    view: View, deployment: Item, status: DeploymentStatus, found: Mapping[str, Item], new: NewInstance
) -> NewInstance:
    """The first try of an instance from ``new`` on whose name no other workload has; one that is kept starts again."""
    while (item := view.get(_key(deployment, name := _name(status, deployment.envelope.name, new)))) is not None:
        if name in found and is_parked(item) and not item.deleting:
            break
        new = msgspec.structs.replace(new, attempt=new.attempt + 1)
    return new


def plan_writes(
    view: View,
    deployment: Item,
    found: dict[str, Item],
    outcome: DeploymentOutcome,
    now: float,
    quota: ProjectQuota | None,
    budgets: Sequence[Allowance],
) -> Commit | None:
    """One commit for the whole ``outcome``, None if nothing changes."""
    draft, status, writes = Draft(deployment), outcome.status, Writes(found)
    for item in found.values():
        if migration := make_migration(deployment, status, item, now):
            draft.make(migration)
    revisions = {one.number: one for one in status.revisions}
    for new in outcome.make:
        name = _name(status, deployment.envelope.name, new)
        if name in found:
            _start(deployment, writes.of(name), revisions[new.revision])
        else:
            writes.by_name[name] = make_instance(deployment, revisions[new.revision], name, now)
    for one, number in outcome.change:
        _change(deployment, writes.of(one.name), revisions[number])
    for one in outcome.delete:
        if one.kept:
            writes.of(one.name).park()
        else:
            writes.of(one.name).deletes = True
    for one in outcome.drain:
        writes.of(one.name).labels[DRAINING_LABEL] = str(int(now))
    for one in outcome.undrain:
        writes.of(one.name).labels[DRAINING_LABEL] = None
    if deployment.spec(DeploymentSpec).adopt and plan_handover(draft, view, deployment, status, writes, now):
        outcome.requeue_after = min(LOOK_SECONDS, outcome.requeue_after or LOOK_SECONDS)
    if deployment.spec(DeploymentSpec).adopt:
        ports = list_ports(find_holder(deployment, found)) if is_asking(status) else ()
        ask_ports(draft, view, found.values(), ports)
    if status != deployment.status(DeploymentStatus):
        draft.change(deployment, status=status)
    for write in writes.by_name.values():
        _write(draft, write, now)
    if (outcome.make or outcome.change) and quota is not None:
        quota.guard(draft)
    more, preconditions = guard(budgets)
    draft.writes += more
    draft.preconditions += preconditions
    events = [Event(kind, reason, text, deployment.envelope.ref, SOURCE) for kind, reason, text in outcome.events[:20]]
    return draft.commit(deployment.key, events)


def _write(draft: Draft, write: InstanceWrite, now: float) -> None:
    labels = {**write.envelope.labels, **write.labels}
    envelope = msgspec.structs.replace(
        write.envelope, labels={key: value for key, value in labels.items() if value is not None}
    )
    if write.item is None:
        envelope.spec = merge_part(envelope.spec, write.spec)
        draft.make(envelope)
        return
    spec = write.spec if write.changes_spec else None
    if spec is not None or write.deletes or envelope.labels != write.envelope.labels:
        item = Item(envelope)
        afresh = WorkloadActions(restart_generation=count_starts(item) + 1) if write.afresh else None
        draft.change(item, spec=spec, actions=afresh, deleting_since=now if write.deletes else None)


def _start(deployment: Item, write: InstanceWrite, revision: Revision) -> None:
    """Let one that is kept run again, in this revision."""
    spec = merge_template(write.spec, make_spec(deployment, revision))
    write.set_spec(msgspec.structs.replace(spec, run="run"))
    write.labels = {DRAINING_LABEL: None, PARKED_LABEL: None, REVISION_LABEL: str(revision.number)}


def _change(deployment: Item, write: InstanceWrite, revision: Revision) -> None:
    assert write.item is not None
    old, limits = write.spec, write.item.status(WorkloadStatus).resize_limits
    spec = merge_template(old, make_spec(deployment, revision))
    if any(change.mode in ("restart", "start") for change in plan_spec_change(old, spec, lambda: limits)):
        write.afresh = True
    write.set_spec(spec)
    write.labels = {REVISION_LABEL: str(revision.number), DRAINING_LABEL: None, **revision.labels}


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
    migration = MIGRATION.make(name, spec, now, project=of.project, creator=of.creator)
    pass_on(deployment.envelope, migration)
    return migration


def make_instance(deployment: Item, revision: Revision, name: str, now: float) -> InstanceWrite:
    """The VM or container, as the API server would make it. What only one VM can have, another one hands over to it."""
    of, spec = deployment.envelope, deployment.spec(DeploymentSpec)
    kind = TEMPLATES[spec.workload]
    labels = {**revision.labels, DEPLOYMENT_LABEL: of.name, REVISION_LABEL: str(revision.number)}
    template = make_spec(deployment, revision)
    if spec.adopt:
        template = msgspec.structs.replace(template, volumes=[])
    envelope = kind.make(name, template, now, project=of.project, labels=labels, owner=of)
    return InstanceWrite(None, envelope, template)


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
        return plan_blocked(deployment, f"vm/{spec.adopt} {why}", IS_REPLICATED)
    draft = Draft(deployment)
    own = {**vm.envelope.labels, **spec.labels, DEPLOYMENT_LABEL: of.name, REVISION_LABEL: "1"}
    draft.change(Item(msgspec.structs.replace(vm.envelope, labels=own, owner=of.ref)))
    text = f"vm/{spec.adopt} is its first instance now"
    return draft.commit(deployment.key, [Event("Normal", "Adopted", text, of.ref, SOURCE)])


def plan_blocked(deployment: Item, why: str, reason: str = NAME_TAKEN) -> Commit | None:
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
    """Delete the instances of a deleted deployment but the VMs that are kept, then release it."""
    own = view.find(WORKLOADS_BY_OWNER, deployment.uid)
    if not own:
        event = Event("Normal", "Deleted", f"{deployment.envelope.name} was deleted", deployment.envelope.ref, SOURCE)
        return Commit(deployment.key, [let_go(deployment, FINALIZER)], [unchanged(deployment)], [event])
    draft = Draft(deployment)
    for item in [item for item in own if not item.deleting][:MOST_AT_ONCE]:
        if is_kept(deployment, item) or is_parked(item):  # it goes on without
            kept = {key: value for key, value in item.envelope.labels.items() if not key.startswith(OWN_LABELS)}
            draft.change(Item(msgspec.structs.replace(item.envelope, labels=kept, owner=None)))
            ask_ports(draft, view, [item], ())
        else:
            draft.change(item, deleting_since=now)
    return draft.commit(deployment.key)


def _name(status: DeploymentStatus, deployment: str, new: NewInstance) -> str:
    own = next((one.instance for one in status.revisions if one.number == new.revision), "")
    is_first = (new.slot, new.attempt) == (0, 1)
    return own if own and is_first else instance_name(deployment, new.revision, new.slot, new.attempt)


def _key(deployment: Item, name: str) -> str:
    return object_key(deployment.spec(DeploymentSpec).workload, deployment.envelope.project, name)
