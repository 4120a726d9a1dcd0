"""A workload's status, folded from its spec and from its nodes' reports. Pure and without memory.

Facts win over the lifecycle's order: reports may skip phases. A part of the spec that isn't carried out yet doesn't change the
phase; it stands in ``reason`` (stopping, suspending, restarting, starting) until it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from weft.kinds.allocation import (
    AllocationReport,
    AllocationSpec,
    find_unknown_departure,
    has_given_way,
    has_left_cluster,
    is_current,
    is_lease_over,
)
from weft.kinds.fields.lease import (
    LATE_SECONDS,
    LEASE_AT_RISK,
    LEASE_CONFLICT,
    LEASE_WAITS,
    PREEMPTED,
    WARN_SECONDS,
    LeaseRequest,
    LeaseStatus,
)
from weft.kinds.parts.goal import NOT_STARTED, RESTARTING, STARTING
from weft.kinds.parts.in_place_update import describe_change, plan_fit
from weft.kinds.parts.migration.departing import HANDED_OVER, describe_lost
from weft.kinds.parts.placement_spec import REFUSALS
from weft.kinds.parts.workload import WorkloadSpec, WorkloadStatus
from weft.objects.envelope import Condition
from weft.objects.lifecycle import Phase
from weft.objects.quantity import format_duration, format_time

# ``status.reason`` while a spec is being carried out, beside STARTING and RESTARTING.
STOPPING, SUSPENDING, FENCED = "stopping", "suspending", "fenced"
_MOST_PAUSES = 3  # of a lease, in its message
_GIVEN = ("Placed", "Adopted")  # reasons of the condition Placed of a workload that has all that its place can give
# Reasons of the condition Current: the node does it now; the node was away when it was told to, until it has done it.
CHANGING, RESIZE_WAITS = "Changing", "ResizeWaits"


class AllocationFacts(msgspec.Struct, frozen=True):
    """One allocation and its node's phase."""

    spec: AllocationSpec
    report: AllocationReport
    node_phase: str | None  # None: the node has left the fabric
    generation: int = 0
    leaves: bool = False  # it is being deleted: its node must release it
    outlook: str = ""  # what becomes of it while its node is silent


class DesiredWorkload(msgspec.Struct, frozen=True):
    """The workload as people want it."""

    spec: WorkloadSpec
    generation: int
    deleting: bool
    placed: Condition | None
    addressed: Condition | None
    migration: str = ""  # the one that migrates it
    once: bool = False  # it never runs twice
    conversion: str = ""  # the one under way that it is part of
    converts_to: str = ""  # what it becomes by that, if it is the old one
    arrives: str = ""  # the Arrival that it comes by from another cluster
    departed: str = ""  # where it migrated to
    fenced: str = ""  # at which cluster it runs, or may run, so that it can't be started here
    current: Condition | None = None  # until now
    starts: int = 0  # its counter of starts


def fold_status(
    desired: DesiredWorkload, places: Sequence[AllocationFacts], addresses: Mapping[str, str], former: WorkloadStatus
) -> WorkloadStatus:
    """The new status. ``addresses``: network → address, first NIC first; ``former`` is the status until now."""
    place = active_place(places)
    origin = place.spec.origin if place is not None else None
    status = WorkloadStatus(
        phase=former.phase,
        lost_since=(origin and origin.lost_since) or former.lost_since,
        address=next(iter(addresses.values()), None),
        addresses=dict(addresses),
        incarnation=max([former.incarnation, *(p.spec.incarnation for p in places)]),
        active_incarnation=max(
            [_former_active(former), *(p.spec.incarnation for p in places if p.spec.role == "active")]
        ),
        observed_generation=desired.generation,
        migration=desired.migration,
        conversion=desired.conversion,
        converts_to=desired.converts_to,
    )
    if desired.once and former.ended and not desired.deleting and (place is None or not place.report.ended):
        # Of an allocation that has gone, or was released.
        kept = ("phase", "ended", "exit_code", "reason", "message", "restarts")
        return replace(status, **{name: getattr(former, name) for name in kept})
    if place is None or (place.leaves and place.report.state == "released" and not desired.deleting):
        _fold_placeless(status, desired, former)
    else:
        _fold_place(status, desired, place, former)
        silent = _find_silent_target(place, places)
        if silent is not None:
            status.phase, status.reason = Phase.UNKNOWN, "nodeLost"
            status.message = _lost(silent, "the guest was handed over to that node; waiting for its report")
    if desired.fenced and status.phase == Phase.STOPPED and not desired.departed:
        status.reason, status.message = FENCED, desired.fenced
    return status


def _former_active(former: WorkloadStatus) -> int:
    """An older weft had one number for both."""
    return former.active_incarnation or former.incarnation


def _fold_placeless(status: WorkloadStatus, desired: DesiredWorkload, former: WorkloadStatus) -> None:
    if desired.deleting:
        status.phase = Phase.EPILOG
        return
    if desired.departed:
        status.phase, status.reason, status.message = Phase.STOPPED, "departed", f"it migrated to {desired.departed}"
        return
    if desired.spec.hold:
        status.phase = Phase.HOLD
        return
    status.phase = Phase.PENDING
    waiting = next((c for c in (desired.addressed, desired.placed) if c is not None and c.status == "False"), None)
    if desired.spec.run != "run":
        status.reason, status.message = NOT_STARTED, "the workload gets a node when it is started"
    elif waiting is not None:
        status.reason, status.message = waiting.reason, waiting.message
        final = waiting.reason in REFUSALS and waiting.generation == desired.generation
        if desired.spec.type == "serverless" and final:
            status.phase = Phase.FAILED
        elif waiting.reason == LEASE_CONFLICT and waiting.generation == desired.generation:
            status.phase = Phase.REJECTED
    elif desired.arrives:
        status.reason, status.message = "arrives", f"it migrates here from another cluster: arrival/{desired.arrives}"


def _fold_place(
    status: WorkloadStatus, desired: DesiredWorkload, place: AllocationFacts, former: WorkloadStatus
) -> None:
    spec, report = place.spec, place.report
    status.node, status.pool, status.resources = spec.node, spec.pool, spec.resources
    status.boot_id = report.boot_id
    status.accelerator = report.accelerator
    status.resize_limits, status.live_bar = report.resize_limits, report.live_bar
    status.started_at = report.started_at
    status.restarts = report.restarts
    status.ended, status.exit_code = report.ended, report.exit_code
    status.reason, status.message = report.reason, report.message
    status.steps = [msgspec.to_builtins(step) for step in report.steps]
    lost = place.node_phase not in ("Ready", "Joining")
    if desired.deleting:
        status.phase = _leaving(report, former)
        if lost:
            status.reason = "nodeAutonomous" if place.node_phase == "Autonomous" else "nodeLost"
            status.message = _lost(place, place.outlook or "the workload is removed there when the node returns")
        return
    if lost and not report.ended:  # what has run once can't still run there
        status.phase = Phase.UNKNOWN
        if place.node_phase == "Autonomous":
            status.reason = "nodeAutonomous"
            status.message = f"node {spec.node} sends no heartbeat; it is autonomous: the workload goes on there"
            return
        status.reason = "nodeLost"
        status.message = _lost(place, place.outlook or "the workload may still run there; waiting for the node")
        return
    status.phase, doing = _living(desired, spec, report, former)
    if place.leaves:  # it gives its place to another, and waits for a new one
        doing = PREEMPTED
    if spec.role == "source" and _is_migrating(desired.spec, status.phase, spec):
        status.phase = Phase.MIGRATE
    status.ready = report.ready if status.phase in (Phase.BOOT, Phase.RUNNING) else None
    if doing in (STARTING, RESTARTING) and not _has_taken_up(desired.starts, place):
        status.reason, status.message = doing, ""  # what its node says is of the run before
    elif doing and not report.reason:
        status.reason = doing
    elif status.phase == Phase.RUNNING and report.health == "unhealthy" and not report.reason:
        status.reason, status.message = report.health, report.health_message
    elif status.phase == Phase.RUNNING and report.set_up == "failed" and not report.reason:
        status.reason, status.message = "setUpFailed", report.set_up_message
    departure = find_unknown_departure(spec, report, former.handed_over)
    if departure is not None and not has_left_cluster(report):
        status.phase, status.reason, status.handed_over = Phase.UNKNOWN, HANDED_OVER, departure.key
        status.message = describe_lost(f"{spec.workload.kind}/{spec.workload.name}", departure.peer)


def _has_taken_up(starts: int, place: AllocationFacts) -> bool:
    """Whether its node has reported on the last start. An older agent doesn't say so."""
    passed_on = place.spec.restart_generation >= starts and place.spec.desired == "run"
    return place.report.generation is None or (passed_on and place.report.generation >= place.generation)


def _leaving(report: AllocationReport, former: WorkloadStatus) -> Phase:
    gone = report.state in ("stopped", "suspended", "failed", "released", "pending")
    if gone or former.phase == Phase.EPILOG:
        return Phase.EPILOG
    return Phase.SHUTDOWN


def _living(
    desired: DesiredWorkload, spec: AllocationSpec, report: AllocationReport, former: WorkloadStatus
) -> tuple[Phase, str]:
    """The phase of a workload whose node is alive, and the reason while its spec is being carried out."""
    workload_spec, starts = desired.spec, desired.starts
    doing = {"stop": STOPPING, "suspend": SUSPENDING}.get(workload_spec.run, "")
    match report.state:
        case "pending" | "preparing":
            return Phase.PROLOG, doing
        case "starting":
            return Phase.BOOT, doing
        case "running":
            return Phase.RUNNING, doing or (RESTARTING if starts > report.restart_generation else "")
        case "stopping":
            # Until it has stopped, it keeps its former phase.
            was = Phase.BOOT if former.phase in (Phase.PROLOG, Phase.BOOT) else Phase.RUNNING
            return was, doing or (RESTARTING if starts > report.restart_generation else STOPPING)
        case "suspended":
            return (
                Phase.SUSPENDED,
                STARTING if workload_spec.run == "run" else STOPPING if workload_spec.run == "stop" else "",
            )
        case "stopped" if spec.desired == "stop" and not is_current(spec, report):
            return Phase.PROLOG, doing  # its spec desires run again, and it may have begun
        case "stopped":
            wanted = workload_spec.run == "run" and (
                spec.desired != "run" or starts > report.restart_generation or not report.reason
            )
            return Phase.STOPPED, STARTING if wanted else ""
        case "failed":
            return (
                Phase.FAILED,
                STARTING if workload_spec.run == "run" and starts > report.restart_generation else "",
            )
        case "released":
            return Phase.EPILOG, ""


def _find_silent_target(source: AllocationFacts, places: Sequence[AllocationFacts]) -> AllocationFacts | None:
    """The lost node's allocation that the guest was handed over to: it runs there, or nowhere."""
    migration = source.report.migration
    if source.spec.role != "source" or migration is None or migration.phase != "handedOver":
        return None
    targets = (
        p for p in places if p.spec.role == "target" and p.spec.migration and p.spec.migration.key == migration.key
    )
    return next((p for p in targets if p.node_phase not in ("Ready", "Joining")), None)


def _is_migrating(workload_spec: WorkloadSpec, phase: Phase | str, spec: AllocationSpec) -> bool:
    """Whether the guest's state is part of its migration: a cold one shuts it down."""
    cold = spec.migration is not None and spec.migration.mode == "cold" and workload_spec.run == "run"
    preempted = phase == Phase.SUSPENDED and spec.lease is not None and spec.lease.suspension is not None
    rests = cold and not preempted and phase in (Phase.STOPPED, Phase.BOOT, Phase.SUSPENDED)
    return phase == Phase.RUNNING or rests


def _lost(place: AllocationFacts, then: str) -> str:
    if place.node_phase is None:
        return f"node {place.spec.node} has left the fabric; {then}"
    return f"node {place.spec.node} sends no heartbeat; {then}"


def fold_lease(
    desired: DesiredWorkload, place: AllocationFacts | None, former: LeaseStatus | None, now: float
) -> LeaseStatus | None:
    """State of its lease by ``now``; None if it has none."""
    asked = desired.spec.lease
    if desired.spec.reservation is not None:
        asked = LeaseRequest(mode="reservation")
    if asked is None:
        return None
    over = place is None or is_lease_over(place.spec, place.report)
    if former is not None and former.state in ("Done", "Cancelled") and over:
        return former
    if place is None or place.spec.lease is None:
        return _fold_unplaced_lease(desired, asked)
    lease, report, placed = place.spec.lease, place.report, desired.placed
    state = "Active"
    if lease.cancelled:
        state = "Cancelled"
    elif over:
        state = "Done"
    elif report.state == "suspended" or has_given_way(place.spec, report):
        state = "Suspended"
    elif report.state == "pending" and (report.reason == LEASE_WAITS or lease.prepare_at > now):
        state = "Scheduled"
    elif report.state in ("pending", "preparing", "starting"):
        begun = former is not None and former.start == lease.start and former.state in ("Active", "Suspended")
        state = "Active" if begun else "Preparing"  # its guest restarts, or resumes
    told = placed is not None and placed.reason in (LEASE_CONFLICT, LEASE_AT_RISK)
    warned = former is not None and former.warned and former.end == lease.end
    if (
        lease.end is not None
        and lease.suspension is None
        and now >= lease.end - WARN_SECONDS
        and state in ("Active", "Suspended")
    ):
        warned = True
    end = lease.end if lease.suspension is None else None  # later by as long as that lasts
    if state == "Cancelled" and (end is None or now < end):
        end = former.end if former is not None and former.state == "Cancelled" else now
    message = placed.message if placed is not None and told and placed.generation >= desired.generation else ""
    if lease.suspension is not None and not over:
        migration = place.spec.migration if place.spec.role == "source" else None
        there, then = place.spec.node, "that has the capacity"
        if migration is not None and migration.saves:
            there, then = migration.peer, "its memory is there"
        message = f"suspended for {lease.suspension.winner}; it resumes on {there} once {then}"
    elif (pauses := [one for one in lease.pauses if now < one.until]) and not over and not message:
        shown = " and ".join(f"from {format_time(one.at)} to {format_time(one.until)}" for one in pauses[:_MOST_PAUSES])
        more = f" and {len(pauses) - _MOST_PAUSES} more" if len(pauses) > _MOST_PAUSES else ""
        message = f"it is suspended as planned {shown}{more}"
    late = former.late_seconds if former is not None and former.start == lease.start else 0.0
    is_first = former is None or former.start != lease.start or former.state in ("Requested", "Scheduled", "Preparing")
    if is_first and state == "Active" and asked.mode != "best-effort" and report.started_at is not None:
        late = max(0.0, report.started_at - lease.start)
        late = late if late > LATE_SECONDS else 0.0
    if late and lease.suspension is None:
        message = f"it began {format_duration(round(late))} late"
    return LeaseStatus(state=state, start=lease.start, end=end, message=message, warned=warned, late_seconds=late)


def _fold_unplaced_lease(desired: DesiredWorkload, asked: LeaseRequest) -> LeaseStatus:
    placed = desired.placed
    if asked.cancelled:
        return LeaseStatus(state="Cancelled")
    if placed is not None and placed.status == "False" and placed.generation == desired.generation:
        state = "Rejected" if placed.reason == LEASE_CONFLICT else "Requested"
        return LeaseStatus(state=state, message=placed.message)
    return LeaseStatus()


def fold_current(desired: DesiredWorkload, places: Sequence[AllocationFacts], now: float) -> Condition | None:
    """The condition Current: whether a workload's allocation has what its spec requests, and if not, why and what helps; None
    without an allocation."""
    if desired.departed:  # of what has left, nothing is waited for
        return Condition("Current", "True", "Current", "", now, desired.generation)
    place = active_place(places)
    if place is None or desired.deleting:
        return None
    changes = plan_fit(place.spec, desired.spec, place.report)
    behind = [change for change in changes if change.mode != "live"]
    if changes and place.spec.role == "source":
        what = ", ".join(describe_change(change) for change in changes)
        return Condition(
            "Current", "False", "Migrating", f"{what}: waits for the migration to end", now, desired.generation
        )
    is_of_now = place.report.generation is None or place.report.generation >= place.generation
    trouble = place.report.state == "running" and place.report.reason and is_of_now
    condition = Condition("Current", "True", "Current", "", now, desired.generation)
    placed = desired.placed
    refused = placed is not None and placed.reason not in _GIVEN and placed.generation >= desired.generation
    if changes and placed and refused:
        return replace(condition, status="False", reason=placed.reason, message=placed.message)
    if trouble and place.report.reason not in ("changing", "paused"):
        return replace(condition, status="False", reason=place.report.reason, message=place.report.message)
    if len(behind) < len(changes) or (place.report.has is not None and place.report.fitted < place.generation):
        was = desired.current.reason if desired.current is not None else ""
        is_away = place.node_phase in ("Autonomous", "NotReady")
        if was == RESIZE_WAITS or (is_away and was != CHANGING):
            return replace(condition, status="False", reason=RESIZE_WAITS, message=f"waits for node {place.spec.node}")
        return replace(condition, status="False", reason=CHANGING, message="the running guest is being updated")
    if behind and place.report.resize_limits is not None:
        what = ", ".join(describe_change(change) for change in behind)
        return replace(condition, status="False", reason="RestartNeeded", message=f"{what}: takes effect at a restart")
    asked, where = desired.spec.node, place.spec.node
    if asked and asked != where and not desired.migration and not desired.once:
        workload = place.spec.workload
        said = f"it is on node {where}, not on {asked}: weft {workload.kind} migrate {workload.name} --to {asked}"
        return replace(condition, reason="OnAnotherNode", message=said)  # all else is as it says
    if place.report.outdated:
        workload = place.spec.workload
        said = f"its QEMU was upgraded since it started: weft {workload.kind} migrate {workload.name}, or restart, renews it"
        return replace(condition, reason="Outdated", message=said)
    return condition


def has_been_resized(former: Condition | None, current: Condition | None, place: AllocationFacts | None) -> bool:
    """Whether its node, which was away when the new size came, has now reported that the guest has it."""
    waited = former is not None and former.reason == RESIZE_WAITS and current is not None
    return waited and place is not None and place.report.has is not None and place.report.fitted >= place.generation


def fold_healthy(status: WorkloadStatus, report: AllocationReport, generation: int, now: float) -> Condition:
    """The condition Healthy of a workload whose health is checked or reported."""
    if status.phase != Phase.RUNNING or not report.health:
        return Condition(
            "Healthy", "Unknown", str(status.phase), "health is checked only while the workload runs", now, generation
        )
    if report.health == "starting":
        return Condition("Healthy", "Unknown", "Starting", report.health_message, now, generation)
    well = report.health == "healthy"
    return Condition(
        "Healthy", "True" if well else "False", report.health.capitalize(), report.health_message, now, generation
    )


def active_place(places: Sequence[AllocationFacts]) -> AllocationFacts | None:
    """The active allocation of the highest incarnation."""
    active = (p for p in places if p.spec.role in ("active", "source"))
    return max(active, key=lambda p: p.spec.incarnation, default=None)


def fold_ready(status: WorkloadStatus, generation: int, now: float) -> Condition:
    """The condition Ready that goes with ``status``."""
    if status.phase == Phase.UNKNOWN:
        return Condition("Ready", "Unknown", status.reason or "Unknown", status.message, now, generation)
    if status.phase == Phase.RUNNING and status.ready is not False:
        reason = "Answers" if status.ready else "Runs"
        return Condition("Ready", "True", reason, "", now, generation)
    return Condition("Ready", "False", status.phase, status.message, now, generation)


def fold_set_up(status: WorkloadStatus, report: AllocationReport, former: Condition | None, now: float) -> Condition:
    """The condition SetUp of a VM that was given something for its first boot: it holds what the guest said last."""
    if not report.set_up:
        message = "the guest is asked while the VM runs and answers"
        return former or Condition("SetUp", "Unknown", str(status.phase), message, now)
    if report.set_up == "running":
        return Condition("SetUp", "Unknown", "Running", "the guest is still carrying it out", now)
    done = report.set_up == "done"
    return Condition("SetUp", "True" if done else "False", "Done" if done else "Failed", report.set_up_message, now)
