"""Leads each Migration on, from its spec to its end.

Reads Migrations, workloads, allocations, nodes; writes Migration.status and, of a workload that migrates, both allocations:
their roles, what they desire and how they migrate. Woken by any of those. ``plan_migration`` decides what to write; the scheduler
makes the target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from weft.contracts.journal import Event
from weft.controllers.allocation.active import active_allocation
from weft.controllers.loop import Plan
from weft.controllers.migration.disk_relocation import plan_storage
from weft.controllers.migration.facts import MigrationEndpoint, MigrationOutcome, MigrationPlanFacts
from weft.controllers.migration.plan import plan_migration
from weft.controllers.migration.schedule import find_planned, forecast_migration, judge_window, read_appointment
from weft.informer.commit import Commit, Draft, delete, edit, let_go, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import count_starts, find_reservation, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, ALLOCATIONS_BY_WORKLOAD, AllocationReport, AllocationSpec
from weft.kinds.fields.allocated_migration import read_migration
from weft.kinds.migration import (
    ENDED,
    MIGRATIONS_BY_UID,
    MIGRATIONS_BY_WORKLOAD,
    MigrationActions,
    MigrationActual,
    MigrationMarks,
    MigrationSpec,
    MigrationStatus,
    is_settled,
    is_under_way,
    migration_key,
    read_workload,
    workload_key,
)
from weft.kinds.node import NODES_BY_UID, NodeActions, NodeSpec, NodeStatus, find_cordon, is_quarantined
from weft.kinds.registry import WORKLOADS, is_workload
from weft.objects.envelope import Envelope
from weft.objects.identity import object_key

FINALIZER = "migration"
SOURCE = "migrations"


class Migrations:
    name = "migrations"
    kinds = ("migration", "allocation", *WORKLOADS, "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "migration":
                keys = (change.key, *_others(view, change.item))
                was, now = (read_appointment(item) if item is not None else None for item in (change.old, change.new))
                return (*keys, *find_planned(view)) if was != now else keys
            case "allocation":
                items = (item for item in (change.old, change.new) if item is not None)
                keys = tuple(_migrations_of(view, items))
                if has_changed(change, lambda item: (item.spec(AllocationSpec), item.report(AllocationReport).has)):
                    ref = change.item.spec(AllocationSpec).workload
                    of_vm = view.find(MIGRATIONS_BY_WORKLOAD, object_key(ref.kind, ref.project, ref.name))
                    keys += tuple(item.key for item in of_vm if read_appointment(item) is not None)
                return keys
            case kind if is_workload(kind):
                if has_changed(change, lambda item: (item.uid, item.envelope.generation, item.deleting)):
                    return [item.key for item in view.find(MIGRATIONS_BY_WORKLOAD, change.key)]
            case "node":
                if has_changed(change, _migration_relevant_state):
                    return _migrations_of(view, view.find(ALLOCATIONS_BY_NODE, change.item.uid))
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            item = view.get(key)
            if item is None:
                continue
            if item.spec(MigrationSpec).cluster is not None and not is_settled(item.status(MigrationStatus)):
                continue  # departures to other clusters have a loop of their own
            if item.status(MigrationStatus).phase in ENDED:
                commit = plan_release(view, item)
            else:
                facts, source, target = read_facts(view, item, now)
                if facts.spec.mode == "storage":
                    place, outcome = plan_storage(view, item, facts)
                    if outcome.status.phase == "Planned":
                        outcome.status.window = judge_window(view, item, outcome.status)
                    commit = plan_writes(item, place, None, None, outcome, now)
                    plan.commits += [commit] if commit is not None else []
                    if outcome.requeue_after is not None:
                        plan.later[key] = outcome.requeue_after
                    continue
                reservation, outcome = find_reservation(view, item), plan_migration(facts)
                if outcome.status.phase in ("Proposed", "Planned"):
                    outcome.status.window = judge_window(view, item, outcome.status)
                    outcome.status.forecast = forecast_migration(view, item, outcome.status)
                commit = plan_writes(item, source, target, reservation, outcome, now, find_reason(view, item))
                if outcome.requeue_after is not None:
                    plan.later[key] = outcome.requeue_after
            plan.commits += [commit] if commit is not None else []
        return plan


def read_facts(view: View, item: Item, now: float) -> tuple[MigrationPlanFacts, Item | None, Item | None]:
    """The facts of a Migration, and its source and target allocations."""
    spec, status = item.spec(MigrationSpec), item.status(MigrationStatus)
    workload = view.get(workload_key(item))
    key = migration_key(item.uid, status.tries)
    endpoints: dict[str, Item] = {}
    place = None
    if workload is not None:
        for allocation in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid):
            at = allocation.spec(AllocationSpec)
            if at.migration is not None and at.migration.key == key:
                endpoints[at.role] = allocation
        place = active_allocation(view, workload.uid)
    source, target = endpoints.get("source"), endpoints.get("target")
    return (
        MigrationPlanFacts(
            name=item.envelope.name,
            spec=spec,
            actions=item.actions(MigrationActions),
            marks=item.marks(MigrationMarks),
            status=status,
            deleting=item.deleting,
            placed=item.envelope.condition("Placed"),
            workload=spec_of(workload) if workload is not None and not workload.deleting else None,
            starts=count_starts(workload) if workload is not None else 0,
            place=read_endpoint(view, place),
            rival=find_rival(view, item),
            source=read_endpoint(view, source),
            target=read_endpoint(view, target),
            reservation=read_endpoint(view, find_reservation(view, item)),
            now=now,
        ),
        source,
        target,
    )


def plan_writes(
    item: Item,
    source: Item | None,
    target: Item | None,
    reservation: Item | None,
    outcome: MigrationOutcome,
    now: float,
    why: Envelope | None = None,
) -> Commit | None:
    """One commit for the whole ``outcome``; None if nothing changes. ``why`` is the workload's Decision for its new place."""
    former, status = item.status(MigrationStatus), outcome.status
    # What was planned depends on both allocations.
    draft = Draft(item, *(endpoint for endpoint in (source, target) if endpoint is not None))
    for endpoint, spec, goes in (
        (source, outcome.source, outcome.source_goes),
        (target, outcome.target, outcome.target_goes),
    ):
        if endpoint is not None and (spec is not None or goes):
            draft.change(endpoint, spec=spec, deleting_since=now if goes else None)
    if reservation is not None and outcome.reservation_goes:  # no node has begun anything for it
        draft.delete(reservation)
    if status.phase == "Finishing" and former.phase != "Finishing" and why is not None:
        draft.writes.append(put(why))
    if status != former:
        draft.change(item, status=status)
    return draft.commit(item.key, list_events(item, former, status))


def plan_release(view: View, item: Item) -> Commit | None:
    """Release an ended Migration that was deleted, and delete its Decision."""
    if not item.deleting:
        return None
    writes = [let_go(item, FINALIZER)]
    decision = view.get(object_key("decision", item.envelope.project, f"migration.{item.envelope.name}"))
    if decision is not None and decision.envelope.owner == item.envelope.ref:
        writes.append(delete(decision))
    return Commit(item.key, writes, [unchanged(item)])


def find_reason(view: View, item: Item) -> Envelope | None:
    """The workload's Decision with the content of the Migration's."""
    project, (kind, name) = item.envelope.project, read_workload(item.spec(MigrationSpec))
    decided = view.get(object_key("decision", project, f"migration.{item.envelope.name}"))
    former = view.get(object_key("decision", project, f"{kind}.{name}"))
    if decided is None or former is None:
        return None
    envelope = edit(former)
    envelope.spec = decided.envelope.spec
    envelope.generation += 1
    return envelope


def list_events(item: Item, former: MigrationStatus, status: MigrationStatus) -> list[Event]:
    events = []
    if status.plan is not None and (former.plan is None or former.plan.reason != status.plan.reason):
        events.append(
            Event("Normal", "Planned", f"{status.plan.mode}: {status.plan.reason}", item.envelope.ref, SOURCE)
        )
    if status.ending and status.ending != former.ending:
        events.append(Event("Warning", status.reason, status.message, item.envelope.ref, SOURCE))
    if (
        status.phase == "Planned"
        and status.reason in ("reservationHeld", "reservationLost")
        and status.message != former.message
    ):
        lost: Literal["Warning", "Normal"] = "Warning" if status.reason == "reservationLost" else "Normal"
        events.append(Event(lost, status.reason, status.message, item.envelope.ref, SOURCE))
    if status.phase != former.phase:
        bad: Literal["Warning", "Normal"] = "Warning" if status.phase == "Failed" else "Normal"
        way = f"{status.source} → {status.target}" if status.target else f"from {status.source}"
        spec = item.spec(MigrationSpec)
        if spec.mode == "storage":
            way = f"{spec.volume or 'root disk'} → pool {spec.pool}"
        why = f": {status.message}" if status.message else ""
        done = _render_actual(status.actual) if status.actual is not None and status.phase == "Succeeded" else ""
        events.append(Event(bad, status.phase, f"{way}{done}{why}", item.envelope.ref, SOURCE))
    return events


def _render_actual(actual: MigrationActual) -> str:
    pause = f", downtime {actual.pause_ms} ms" if actual.pause_ms else ""
    return f" in {actual.duration_seconds:.1f} s{pause}"


def read_endpoint(view: View, item: Item | None) -> MigrationEndpoint | None:
    if item is None:
        return None
    spec = item.spec(AllocationSpec)
    nodes = view.find(NODES_BY_UID, spec.node_uid)
    bandwidth = nodes[0].spec(NodeSpec).migration_bandwidth if nodes else 0
    asked, status = (
        (nodes[0].actions(NodeActions), nodes[0].status(NodeStatus)) if nodes else (NodeActions(), NodeStatus())
    )
    cordon = "being drained" if asked.drain else find_cordon(asked, status)
    closed = f"the node is {cordon}" if cordon else "the node is in maintenance" if asked.maintenance else ""
    phase = status.phase if nodes else None
    return MigrationEndpoint(spec, item.report(AllocationReport), phase, item.deleting, bandwidth, closed)


def _migration_relevant_state(node: Item) -> object:
    """The parts of a node that concern migrations from it and to it."""
    asked = node.actions(NodeActions)
    people = (node.spec(NodeSpec).migration_bandwidth, asked.cordoned, asked.drain, asked.maintenance)
    status = node.status(NodeStatus)
    return node.uid, status.phase, is_quarantined(status), status.newer_than, people


def _migrations_of(view: View, allocations: Iterable[Item]) -> list[str]:
    """The keys of the Migrations that these allocations are part of."""
    specs = [item.spec(AllocationSpec) for item in allocations]
    migrations = [one for spec in specs for one in (spec.migration, spec.storage) if one is not None]
    uids = sorted({read_migration(migration.key) for migration in migrations})
    return [item.key for uid in uids for item in view.find(MIGRATIONS_BY_UID, uid)]


def _others(view: View, item: Item) -> list[str]:
    """The keys of other Migrations of the same workload that haven't ended."""
    return [
        other.key
        for other in view.find(MIGRATIONS_BY_WORKLOAD, workload_key(item))
        if other.uid != item.uid and other.status(MigrationStatus).phase not in ENDED
    ]


def find_rival(view: View, item: Item) -> str:
    """The Migration of the same workload that goes first: one that has begun, of several new ones the oldest."""

    def order(one: Item) -> tuple[bool, float, str]:
        return (one.status(MigrationStatus).started_at is None, one.envelope.created_at, one.key)

    rivals = [other for key in _others(view, item) if (other := view.get(key)) is not None]
    rivals = [one for one in rivals if is_under_way(one.spec(MigrationSpec), one.status(MigrationStatus))]
    first = min(rivals, key=order, default=None)
    return first.envelope.name if first is not None and order(first) < order(item) else ""
