"""Carries out RebalancePlans, as Migrations, a few at a time.

Reads plans, workloads, nodes, Migrations; writes the plans' status, and makes Migrations labelled with the plan's name. A
Migration's name follows from plan, workload and direction, and it is made only if there is none: never twice, whatever is killed.
Woken by plans, by their Migrations, and by nodes and workloads while a plan is under way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.contracts.trace.context import pass_on
from weft.controllers.loop import Plan
from weft.controllers.node.trouble import find_trouble
from weft.controllers.rebalance.plan import Situation, plan_rebalance
from weft.informer.commit import Commit, Draft, unchanged
from weft.informer.view import Changed, Item, View
from weft.kinds.migration import (
    MIGRATION,
    MIGRATIONS_BY_WORKLOAD,
    MigrationActions,
    MigrationSpec,
    MigrationStatus,
    is_under_way,
)
from weft.kinds.parts.migration.verb import MIGRATION_MODES
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.rebalance_plan import LABEL, PlannedStep, RebalancePlanActions, RebalancePlanSpec, RebalancePlanStatus
from weft.objects.identity import cut_name, object_key

SOURCE = "rebalance"
AGAIN_SECONDS = 5.0  # until workloads that migrate for others are read again


class Rebalancing:
    name = "rebalance"
    kinds = ("rebalanceplan", "migration")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "rebalanceplan":
            return [change.key] if change.new is not None else ()
        label = change.item.envelope.labels.get(LABEL)
        return [object_key("rebalanceplan", None, label)] if label else ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            item = view.get(key)
            if item is None or item.deleting:
                continue
            asked, status = item.actions(RebalancePlanActions), item.status(RebalancePlanStatus)
            if not asked.start or status.phase in ("Refused", "Undone") or (status.phase == "Done" and not asked.undo):
                continue
            if commit := plan_commit(view, item, now):
                plan.commits.append(commit)
            plan.later[key] = AGAIN_SECONDS
        return plan


def plan_commit(view: View, item: Item, now: float) -> Commit | None:
    """The next status of a plan with the Migrations that it says are under way, all or nothing; None if nothing changes."""
    spec, asked, former = (
        item.spec(RebalancePlanSpec),
        item.actions(RebalancePlanActions),
        item.status(RebalancePlanStatus),
    )
    seen = [read_situation(view, item, spec, number) for number in range(len(spec.steps))]
    decision = plan_rebalance(spec, asked, former, seen, find_other(view, item), now)
    if decision.status == former and not decision.cancel:
        return None
    draft = Draft(item)
    if decision.status != former:
        draft.change(item, status=decision.status)
    for one in decision.begin:
        step = spec.steps[one.number]
        workload = view.get(key_of(step))
        assert workload is not None, "its situation has a node"
        why = f"{'undo of ' if asked.undo else ''}rebalanceplan {item.envelope.name}" + (
            f": {step.reason}" if step.reason and not asked.undo else ""
        )
        mode = MIGRATION_MODES[workload.envelope.kind][0]
        draft.preconditions.append(unchanged(workload))
        migration = MIGRATION.make(
            one.name,
            MigrationSpec(workload=step.workload, to=one.to, mode=mode, reason=why[:200]),
            now,
            project=step.project,
            creator=workload.envelope.creator,
            labels={LABEL: item.envelope.name},
        )
        pass_on(item.envelope, migration)
        draft.make(migration)
    for number in decision.cancel:
        begun = view.get(object_key("migration", spec.steps[number].project, seen[number].migration))
        assert begun is not None, "its situation has a phase"
        draft.change(begun, actions=msgspec.structs.replace(begun.actions(MigrationActions), cancel=True))
    events = []
    if decision.status.phase != former.phase:
        kind: Literal["Warning", "Normal"] = "Warning" if decision.status.phase == "Refused" else "Normal"
        events.append(Event(kind, decision.status.phase, decision.status.message, item.envelope.ref, SOURCE))
    return draft.commit(item.key, events)


def key_of(step: PlannedStep) -> str:
    kind, _, name = step.workload.partition("/")
    return object_key(kind, step.project, name)


def name_migration(plan: Item, step: PlannedStep, *, back: bool) -> str:
    mark = hashlib.sha256(f"{plan.uid}/{step.uid}/{'back' if back else 'there'}".encode()).hexdigest()[:8]
    name = step.workload.partition("/")[2]
    return cut_name(name, f"-{mark}")


def read_situation(view: View, plan: Item, spec: RebalancePlanSpec, number: int) -> Situation:
    """Situation of one migration of a plan: in the direction that its state is in."""
    step, states = spec.steps[number], plan.status(RebalancePlanStatus).steps
    state = states[number].state if number < len(states) else "Waiting"
    back = state == "Returning" or (plan.actions(RebalancePlanActions).undo and state != "Migrating")
    name = name_migration(plan, step, back=back)
    migration = view.get(object_key("migration", step.project, name))
    phase, message, cancelled = "", "", False
    if migration is not None:
        found = migration.status(MigrationStatus)
        phase, message, cancelled = found.phase, found.message, migration.actions(MigrationActions).cancel
    workload = view.get(key_of(step))
    node = ""
    if workload is not None and workload.uid == step.uid and not workload.deleting:
        node = workload.status(WorkloadStatus).node or ""
    others = (
        one.envelope.name
        for one in view.find(MIGRATIONS_BY_WORKLOAD, key_of(step))
        if one.envelope.name != name and is_under_way(one.spec(MigrationSpec), one.status(MigrationStatus))
    )
    return Situation(
        node=node,
        busy=next(others, ""),
        trouble=find_trouble(view, step.from_ if back else step.to),
        migration=name,
        phase=phase,
        cancelled=cancelled,
        message=message,
    )


def find_other(view: View, plan: Item) -> str:
    """Another plan that is under way; of two that are started together, the first by name begins."""
    for item in view.of_kind("rebalanceplan").values():
        status, asked = item.status(RebalancePlanStatus), item.actions(RebalancePlanActions)
        begun = status.phase in ("Running", "Undoing")
        first = asked.start and status.phase == "Proposed" and item.envelope.name < plan.envelope.name
        if item.uid != plan.uid and not item.deleting and (begun or first):
            return item.envelope.name
    return ""
