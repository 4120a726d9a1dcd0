"""Next step of a Migration: its spec, its status and the reports of source and target in; edits of the two allocations and its new
status out. Pure and without memory: after a crash the next process decides the same.

The order: the target waits, so the source gets its address · the source sends · the target has taken over, so the allocations
swap their roles, in one commit · the source's allocation is gone. Until the target reports that it has taken over, a migration
can be aborted: the target is stopped, and only its report that the guest never ran there lets the source continue for good.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from weft.controllers.migration.abort import (
    HAND_OVER_PATIENCE_SECONDS,
    READY_PATIENCE_SECONDS,
    describe_stuck,
    find_abort_reason,
    is_stuck,
)
from weft.controllers.migration.facts import (
    READY,
    MigrationEndpoint,
    MigrationOutcome,
    MigrationPlanFacts,
    has_migrated_on,
)
from weft.controllers.migration.progress import compare, end_migration, measure, record_progress, time_left
from weft.kinds.allocation import AllocationSpec, account, come_back, set_desired
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport
from weft.kinds.fields.lease import end_suspension
from weft.kinds.migration import ENDED, HAS_LEFT, MIGRATED_ON, NOT_ACCEPTED, WORKLOAD_DELETED, MigrationStatus
from weft.kinds.parts.workload import OUT_OF_REACH


def plan_migration(facts: MigrationPlanFacts) -> MigrationOutcome:
    """Plan what to write now. Capacity stays reserved while the migration is planned, until the scheduler has made its target."""
    outcome = _plan(facts)
    waits = facts.source is None and facts.target is None and outcome.status.phase in ("Planned", "Pending")
    outcome.reservation_goes = facts.reservation is not None and (outcome.reservation_goes or not waits)
    return outcome


def _plan(facts: MigrationPlanFacts) -> MigrationOutcome:
    facts = replace(facts, status=_mend_times(facts.status, facts.now))
    status, source, target = facts.status, facts.source, facts.target
    if status.phase in ENDED:
        return MigrationOutcome(status=status)
    if status.phase == "Finishing":
        return _finish(facts)
    if source is None and target is None:
        return begin_migration(facts)
    if target is not None and target.reports("takenOver"):
        return _swap(facts, target)
    if target is not None and has_migrated_on(target):
        return _leave_both(facts, target)
    if status.ending:
        return _abort(facts)
    trouble = find_abort_reason(facts)
    if trouble is not None:
        ending, reason, message = trouble.ending, trouble.reason, trouble.message
        return _abort(replace(facts, status=replace(status, ending=ending, reason=reason, message=message)))
    return _lead(facts)


def _mend_times(status: MigrationStatus, now: float) -> MigrationStatus:
    """Times later than now are of a clock that was set back since: patience begins anew, or it would never end."""
    begun = {name: getattr(status, name) for name in ("started_at", "handed_over_at", "troubled_at")}
    return replace(status, **{name: min(at, now) for name, at in begun.items() if at is not None})


def begin_migration(facts: MigrationPlanFacts) -> MigrationOutcome:
    """There is no source and no target yet: wait for the start time and for a target."""
    spec, status, now = facts.spec, facts.status, facts.now
    if facts.place is not None:
        status = replace(status, source=facts.place.spec.node)
    if facts.deleting or facts.actions.cancel:
        return MigrationOutcome(
            status=end_migration(status, "Cancelled", "cancelled", "cancelled before it began", now)
        )
    if facts.workload is None:
        return MigrationOutcome(
            status=end_migration(status, "Cancelled", WORKLOAD_DELETED, f"{spec.workload} was deleted", now)
        )
    waits = status.started_at is None and facts.place is not None
    short = facts.marks.ahead
    if short and waits and status.source != short:
        message = f"{spec.workload} has left {short} already"
        return MigrationOutcome(status=end_migration(status, "Cancelled", HAS_LEFT, message, now))
    if facts.rival and status.started_at is None and (spec.not_before is None or spec.not_before <= now):
        message = f"migration/{facts.rival} already migrates {spec.workload}; wait for it to end, or cancel it"
        return MigrationOutcome(status=end_migration(status, "Failed", "alreadyMigrating", message, now))
    if waits and spec.to == status.source and (spec.not_before or 0.0) <= now:
        message = f"{spec.workload} is on {spec.to} already"
        return MigrationOutcome(status=end_migration(status, "Cancelled", "alreadyThere", message, now))
    if facts.marks.proposed and status.started_at is None:
        return _propose(facts, status)
    if status.phase == "Proposed":  # it was accepted
        status = replace(status, phase="Planned", target="", reason="", message="")
    if status.started_at is None and spec.not_before is not None and spec.not_before > now:
        return _hold(facts, replace(status, phase="Planned"))
    if status.tries <= 1 and spec.not_after is not None and spec.not_after <= now:
        why = facts.placed.message if facts.placed is not None and facts.placed.status == "False" else ""
        message = "the migration could not start within its window" + (f": {why}" if why else "")
        return MigrationOutcome(status=end_migration(status, "Failed", "tooLate", message, now))
    if facts.place is not None and facts.place.node_phase not in READY and spec.not_after is None:
        reason = OUT_OF_REACH[0 if facts.place.node_phase == "Autonomous" else 1]
        message = f"{status.source} sends no heartbeat, so {spec.workload} can't leave it before it is back"
        return MigrationOutcome(status=end_migration(status, "Failed", reason, message, now))
    if spec.mode == "live" and facts.workload.run != "run":
        message = f"{spec.workload} is not running (run: {facts.workload.run}); start it, or migrate it with --cold"
        return MigrationOutcome(status=end_migration(status, "Failed", "notRunning", message, now))
    if status.started_at is None:
        status = replace(status, phase="Pending", started_at=now, tries=1, reason="", message="")
    placed = facts.placed if facts.placed is not None and facts.placed.status == "False" else None
    left = time_left(spec, status, now)
    if left <= 0:
        reason = placed.reason if placed else "timedOut"
        message = f"no target found within {spec.timeout_seconds:g} s" + (f": {placed.message}" if placed else "")
        return MigrationOutcome(status=end_migration(status, "Failed", reason, message, now))
    if placed is not None and placed.reason == "notSuspended":
        return MigrationOutcome(status=end_migration(status, "Cancelled", placed.reason, placed.message, now))
    if placed is not None and placed.reason in ("notSaved", "encryptedStays"):  # waiting would not help
        return MigrationOutcome(status=end_migration(status, "Failed", placed.reason, placed.message, now))
    if placed is not None:
        status = replace(status, reason=placed.reason, message=placed.message)
    if status.tries == 1 and spec.not_after is not None:
        left = min(left, spec.not_after - now)
    return MigrationOutcome(status=status, requeue_after=left)


def _propose(facts: MigrationPlanFacts, status: MigrationStatus) -> MigrationOutcome:
    """Wait until somebody accepts it, while there is time; no capacity is held."""
    ends = facts.spec.not_after if facts.spec.not_after is not None else facts.spec.not_before
    if ends is not None and ends <= facts.now:
        message = "nobody accepted it in time"
        return MigrationOutcome(status=end_migration(status, "Cancelled", NOT_ACCEPTED, message, facts.now))
    message = f"it waits to be accepted: weft migration accept {facts.name}"
    status = replace(status, phase="Proposed", target=facts.spec.to or "", reason="proposed", message=message)
    return MigrationOutcome(status=status, requeue_after=None if ends is None else ends - facts.now)


def _hold(facts: MigrationPlanFacts, status: MigrationStatus) -> MigrationOutcome:
    """Wait for the start time with reserved capacity, while the reservation holds."""
    assert facts.spec.not_before is not None
    reservation, placed = facts.reservation, facts.placed
    outcome = MigrationOutcome(status=status, requeue_after=facts.spec.not_before - facts.now)
    fault = _find_fault(reservation, facts.place) if reservation is not None else ""
    if reservation is not None and not fault:
        lost = f" ({status.reservation_lost})" if status.reservation_lost else ""
        status.target, status.reason = reservation.spec.node, "reservationHeld"
        status.message = f"capacity is reserved on {reservation.spec.node}{lost}"
        return outcome
    outcome.reservation_goes = reservation is not None
    status.target = ""
    if reservation is not None:
        status.reservation_lost = f"the reservation on {reservation.spec.node} was lost: {fault}"
        status.reason, status.message = "reservationLost", f"{status.reservation_lost}; looking for another one"
    elif placed is not None and placed.status == "False":
        status.reason, status.message = placed.reason, f"no capacity is reserved yet: {placed.message}"
    return outcome


def _find_fault(reservation: MigrationEndpoint, place: MigrationEndpoint | None) -> str:
    """Why reserved capacity is of no use any more; empty if it is."""
    if reservation.node_phase is None:
        return "the node has left the fabric"
    if reservation.node_phase not in READY:
        return "the node sends no heartbeat"
    if reservation.node_closed:
        return reservation.node_closed
    if place is None:
        return ""  # that may pass; without its workload the migration ends
    if place.spec.node_uid == reservation.spec.node_uid:
        return "the workload is on that node by now"
    if _capacity_for(place) != _capacity_for(reservation):
        return "the workload requests other resources now"
    return ""


def _capacity_for(endpoint: MigrationEndpoint) -> object:
    spec = endpoint.spec
    return account(spec, endpoint.report), spec.memberships, spec.extras, [gpu.share for gpu in spec.gpus]


def _lead(facts: MigrationPlanFacts) -> MigrationOutcome:
    """Source and target are there: give the source the target's address, and report progress."""
    source, target = facts.source, facts.target
    status = _update_status(facts)
    outcome = MigrationOutcome(status=status, requeue_after=max(0.1, time_left(facts.spec, status, facts.now)))
    if source is None or target is None:
        return outcome
    address = target.migration_report.address if target.migration_report is not None else ""
    to_source, to_target = _keep_to_limits(source, target), _keep_to_limits(target, source)
    if address and address != to_source.address and not source.reports("handedOver"):
        to_source = replace(to_source, address=address)
    outcome.source = replace(source.spec, migration=to_source) if to_source != source.spec.migration else None
    outcome.target = replace(target.spec, migration=to_target) if to_target != target.spec.migration else None
    for since, patience in (
        (status.handed_over_at, HAND_OVER_PATIENCE_SECONDS),
        (status.troubled_at, READY_PATIENCE_SECONDS),
    ):
        if since is not None:
            outcome.requeue_after = max(0.1, min(outcome.requeue_after or patience, since + patience - facts.now))
    return outcome


def _keep_to_limits(endpoint: MigrationEndpoint, peer: MigrationEndpoint) -> AllocatedMigration:
    """The endpoint's migration with the present bandwidth limits of both nodes."""
    assert endpoint.spec.migration is not None
    return replace(
        endpoint.spec.migration, node_bytes_per_second=endpoint.node_limit, peer_bytes_per_second=peer.node_limit
    )


def _abort(facts: MigrationPlanFacts) -> MigrationOutcome:
    """Wait for the target's report that the guest never ran there, delete the target, and keep the source."""
    source, target = facts.source, facts.target
    outcome = MigrationOutcome(status=_update_status(facts))
    if target is None:
        return _return(facts, outcome)
    if target.reports("abandoned"):
        outcome.target_goes = not target.deleting
        if source is not None and source.spec.migration is not None and not source.spec.migration.never_ran:
            outcome.source = replace(source.spec, migration=replace(source.spec.migration, never_ran=True))
    elif target.spec.desired != "stop":
        outcome.target = set_desired(target.spec, "stop")
    elif target.node_phase not in READY:
        lost = f"target {target.spec.node} sends no heartbeat"
        if source is not None and _has_it(source):
            outcome.target_goes = not target.deleting  # its node abandons it when it is back
            return _return(facts, outcome)
        # It may have taken over; nothing is safe but to wait.
        outcome.status.message = (
            f"{lost}, and the guest may run there; waiting for the node. If that node is off for good: "
            f"weft node delete {target.spec.node} --force; the guest then continues at the source as it was handed over"
        )
    return outcome


def _return(facts: MigrationPlanFacts, outcome: MigrationOutcome) -> MigrationOutcome:
    """Nothing is at the target any more: the source is the active allocation again, and this try ends."""
    source, status, now = facts.source, outcome.status, facts.now
    if source is not None and source.spec.role == "source":
        migration = source.spec.migration
        goes_on = source.reports("handedOver") and not has_migrated_on(source)
        if goes_on and source.node_phase in READY and migration is not None and migration.never_ran:
            return outcome  # the guest continues there first
        outcome.source = _make_active(source)
    if status.ending == "Retry":
        why = f"attempt {status.tries} failed: {status.message}"
        outcome.status = MigrationStatus(
            phase="Pending",
            source=status.source,
            plan=status.plan,
            reason=status.reason,
            message=why,
            tries=status.tries + 1,
            avoid=tuple(dict.fromkeys((*status.avoid, *filter(None, [status.target])))),
            started_at=status.started_at,
        )
    else:
        phase: Literal["Failed", "Cancelled"] = "Cancelled" if status.ending == "Cancelled" else "Failed"
        outcome.status = end_migration(status, phase, status.reason, status.message, now)
    return outcome


def _make_active(source: MigrationEndpoint) -> AllocationSpec:
    return come_back(source.spec, source.spec.migration.key) if source.spec.migration is not None else source.spec


def _has_it(source: MigrationEndpoint) -> bool:
    """Whether the guest runs at the source, and can't be handed over any more."""
    return source.reports("failed") and source.report.state == "running" and source.node_phase in READY


def _swap(facts: MigrationPlanFacts, target: MigrationEndpoint) -> MigrationOutcome:
    """The guest runs at the target: make the target the active allocation."""
    status = _update_status(facts)
    status.phase, status.ending, status.reason, status.message = "Finishing", "", "", ""
    status.actual = measure(status, *_list_reports(facts))
    run = facts.workload.run if facts.workload is not None else target.spec.desired
    active = replace(set_desired(target.spec, run), role="active", migration=None)
    if active.lease is not None and target.spec.migration is not None and target.spec.migration.saves:
        active = replace(active, lease=end_suspension(active.lease, facts.now))  # it has its capacity here
    outcome = MigrationOutcome(status=status, target=active)
    if facts.source is not None:
        migration = facts.source.spec.migration
        migration = replace(migration, taken_over=True) if migration is not None else None
        outcome.source = replace(set_desired(facts.source.spec, "stop"), migration=migration)
        outcome.source_goes = True
    return outcome


def _leave_both(facts: MigrationPlanFacts, target: MigrationEndpoint) -> MigrationOutcome:
    """The guest came to the target and has migrated on since: neither endpoint has it."""
    message = f"target {target.spec.node}: {target.report.message}"
    outcome = MigrationOutcome(
        status=end_migration(facts.status, "Failed", MIGRATED_ON, message, facts.now), target_goes=True
    )
    if facts.source is not None:
        migration = facts.source.spec.migration
        migration = replace(migration, taken_over=True) if migration is not None else None
        outcome.source, outcome.source_goes = replace(set_desired(facts.source.spec, "stop"), migration=migration), True
    return outcome


def _finish(facts: MigrationPlanFacts) -> MigrationOutcome:
    """End once nothing is left at the source."""
    status = replace(facts.status)
    if facts.source is not None:
        status.actual = measure(status, *_list_reports(facts))
        return MigrationOutcome(status=status)
    status.error = compare(status)
    return MigrationOutcome(status=end_migration(status, "Succeeded", "", "", facts.now))


def _list_reports(facts: MigrationPlanFacts) -> list[MigrationReport | None]:
    return [endpoint.migration_report for endpoint in (facts.source, facts.target) if endpoint is not None]


def _update_status(facts: MigrationPlanFacts) -> MigrationStatus:
    """The status with the newest reports of source and target."""
    status = replace(facts.status)
    source, target = facts.source, facts.target
    report = source.migration_report if source is not None else None
    status.source = source.spec.node if source is not None else status.source
    status.target = target.spec.node if target is not None else status.target
    if not status.ending:
        status.reason = status.message = ""
        stuck = target is not None and is_stuck(target)
        status.troubled_at = (status.troubled_at or facts.now) if stuck else None
        if target is not None and stuck:
            status.reason, status.message = target.report.reason, describe_stuck(target)
    if report is None:
        status.phase = "Preparing" if status.phase in ("Planned", "Pending") else status.phase
        return status
    return record_progress(status, report, facts.now)
