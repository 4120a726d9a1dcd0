"""Answers a Report on a drain: where the workloads of a node would migrate to, one after the other, with those before counted.
Pure but for the snapshot, which is restored afterwards."""

from __future__ import annotations

from msgspec.structs import replace

from weft.informer.disruption.budgets import Budgets
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, AllocationReport, AllocationSpec, has_nothing_to_migrate
from weft.kinds.fields.lease import LEASE_CONFLICT
from weft.kinds.migration import MigrationSpec, stands_still
from weft.kinds.node import NODES_BY_UID, NOTHING_LEAVES, SILENT_PHASES, NodeStatus
from weft.kinds.parts.migration.verb import MIGRATION_MODES
from weft.kinds.report import Leaving, ReportStatus
from weft.objects.identity import object_key
from weft.objects.quantity import format_time
from weft.scheduler.allocation.lease import Conflict
from weft.scheduler.allocation.promise import begins_later, find_again
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.migration.checkpointing import has_choice
from weft.scheduler.migration.target import decide, describe_refusal, describe_way, read_migration_candidate
from weft.scheduler.report.drained_slots import Slots
from weft.scheduler.table.trial import Trial
from weft.scheduler.workload.request import Waiting, read_candidate


def preview_drain(
    view: View, engine: Engine, name: str, strategy: str, now: float, *, force: bool = False
) -> ReportStatus:
    """Preview where each would migrate to or begin, the cheapest first, as in a drain; with ``force`` whatever disruption budgets
    say. From a silent node nothing migrates: the answer holds once it is back."""
    node = view.get(object_key("node", None, name))
    if node is None:
        return ReportStatus(phase="Failed", message=f"node {name} not found")
    places = [item for item in view.find(ALLOCATIONS_BY_NODE, node.uid) if not item.deleting]
    places = [
        item for item in places if item.spec(AllocationSpec).role == "active" and not _has_nothing_to_migrate(item)
    ]
    places.sort(key=lambda item: (item.spec(AllocationSpec).resources.memory, item.key))
    budgets = None if force else Budgets(view)
    with engine.snapshot.trial() as trial:
        slots = Slots(view, engine, trial, now)
        leaving = [_find_target(view, engine, place, strategy, trial, budgets, slots, now) for place in places]
    silent = leaving and node.status(NodeStatus).phase in SILENT_PHASES
    return ReportStatus(phase="Done", strategy=strategy, leaving=leaving, message=NOTHING_LEAVES if silent else "")


def _has_nothing_to_migrate(place: Item) -> bool:
    return has_nothing_to_migrate(place.spec(AllocationSpec), place.report(AllocationReport))


def _find_target(
    view: View,
    engine: Engine,
    place: Item,
    strategy: str,
    trial: Trial,
    budgets: Budgets | None,
    slots: Slots,
    now: float,
) -> Leaving:
    spec, report = place.spec(AllocationSpec), place.report(AllocationReport)
    rests, best = report.state in ("stopped", "suspended"), MIGRATION_MODES[spec.workload.kind][0]
    workload_spec = MigrationSpec(workload=f"{spec.workload.kind}/{spec.workload.name}", mode="cold" if rests else best)
    answer = Leaving(
        workload=f"{spec.workload.kind}/{spec.workload.name}",
        project=spec.workload.project or "",
        mode="cold" if stands_still(workload_spec) else "live",
        memory=spec.resources.memory,
    )
    workload = view.get(object_key(spec.workload.kind, spec.workload.project, spec.workload.name))
    if workload is None or workload.uid != spec.workload.uid or workload.deleting:
        return replace(answer, reason="deleting", message="the workload is being deleted")
    if spec.lease is not None and begins_later(spec.lease, report, now):
        if spec.slot is not None:
            return slots.find_start(place, workload, answer, strategy)
        return _find_start(view, engine, place, workload, answer, strategy, trial, now)
    counted = budgets.find(workload) if budgets is not None and stands_still(workload_spec) else []
    held = [allowance for allowance in counted if not allowance.left]
    if any(not allowance.most for allowance in held):
        return replace(
            answer, reason="disruptionBudget", message=f"{held[0].text}; drain with --force to stop it all the same"
        )
    migrating = read_migration_candidate(view, workload, workload_spec, strategy, [])
    if isinstance(migrating, Waiting):
        return replace(answer, reason=migrating.reason, message=migrating.message)
    candidate, row, explanation = decide(engine, migrating)
    if row is None:
        return replace(answer, reason=explanation.error, message=describe_refusal(engine, migrating, explanation, None))
    snapshot, load = engine.snapshot, engine.load(candidate.request, row)
    trial.put(f"rehearsed/{place.key}", snapshot.uids[row], candidate.request.amounts, load)
    (node,) = view.find(NODES_BY_UID, snapshot.uids[row])
    saved = (migrating.carried or has_choice(spec)) and describe_way(view, migrating, workload_spec, node)[0]
    waits = f"waits: {held[0].text}" if held else ""
    still = (
        f"stands still while it migrates: {report.live_bar}"
        if report.live_bar and answer.mode == "live" and not saved
        else ""
    )
    message = "; ".join(filter(None, (still, waits)))
    return replace(answer, to=snapshot.names[row], mode="saved" if saved else answer.mode, message=message)


def _find_start(
    view: View, engine: Engine, place: Item, workload: Item, answer: Leaving, strategy: str, trial: Trial, now: float
) -> Leaving:
    """New start of a lease that hasn't begun. What other leases would have to give way for isn't tried."""
    spec, asked = place.spec(AllocationSpec), spec_of(workload).lease
    candidate = read_candidate(view, workload, strategy, [])
    if isinstance(candidate, Waiting):
        return replace(answer, reason=candidate.reason, message=candidate.message)
    assert spec.lease is not None and asked is not None
    request = replace(candidate.request, leaves=spec.node)
    found = find_again(engine, request, workload.uid, asked, spec.lease, spec.grace_seconds, now)
    if isinstance(found, Conflict):
        return replace(answer, reason=LEASE_CONFLICT, message=found.message)
    snapshot, begins = engine.snapshot, found.lease.start
    held = CalendarEntry(
        snapshot.uids[found.row],
        found.lease.prepare_at,
        (found.lease.end or begins) + spec.grace_seconds,
        request.amounts[:2],
    )
    trial.put_leased(f"rehearsed/{place.key}", held, request.amounts[2], engine.load(request, found.row))
    return replace(answer, to=snapshot.names[found.row], mode="later", message=f"begins there at {format_time(begins)}")
