"""A lease: for how long a workload has its place, and when. What people request, what an allocation holds, and what came of it.
Pure."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from weft.objects.errors import InvalidInput
from weft.objects.quantity import LAST_MOMENT, format_duration, format_moment
from weft.objects.schema import field, words

Mode = Literal["immediate", "best-effort", "reservation", "deadline"]
LEASE_WAITS = "leaseWaits"  # it begins later
LEASE_ENDED = "leaseEnded"
LEASE_CONFLICT = "leaseConflict"
LATE_SECONDS = 5.0  # after a promised start: then it counts as late
LEASE_AT_RISK = "leaseAtRisk"  # its node is lost or takes nothing more, and no other has the capacity
PREEMPTED = "preempted"
LONGEST_SECONDS = 366 * 86400.0
FURTHEST_SECONDS = 2 * 366 * 86400.0  # from now to a start or a deadline
MOST_PRIORITY = 1000
WARN_SECONDS = 600.0  # before its end
MOST_SUSPENSIONS = 3  # of one lease for others; then it isn't suspended any more
# What has waited so long comes before all others, whatever their priority; but in the queue of leases only once it has waited for
# GUARD_SECONDS of scheduler/lease/backfill.py; what is held for the first one there counts against everything else after this time.
PATIENCE_SECONDS = 3600.0
ELSEWHERE_SECONDS = 60.0  # suspended for so long it may resume on another node, unless the server is given another time


class LeaseRequest(msgspec.Struct, kw_only=True):
    mode: Annotated[
        Literal["immediate", "best-effort", "reservation", "deadline"] | None,
        field(
            "immediate: now or not at all; best-effort: as soon as there is capacity; reservation: at lease.start; deadline: done "
            "by lease.deadline_at. Unset, it follows from what is given",
            change="replace",
        ),
    ] = None
    start: Annotated[float | None, field("When a reservation begins", change="replace", quantity="moment")] = None
    duration: Annotated[
        float | None,
        field("How long it has its place; unset: until it is deleted", change="live", quantity="period"),
    ] = None
    deadline_at: Annotated[float | None, field("When it must be over", change="replace", quantity="moment")] = None
    preemptible: Annotated[
        bool | None,
        field("Whether it may be suspended for others; unset: only if it is best-effort", change="live"),
    ] = None
    priority: Annotated[
        int,
        field("Priority: higher goes first", change="live", ge=-MOST_PRIORITY, le=MOST_PRIORITY),
    ] = 0
    priority_class: Annotated[
        str | None,
        field("Priority class that gives the priority, as it is now", change="live", name=True),
    ] = None
    cancelled: Annotated[bool, field("It ends now; weft lease cancel sets it", change="live")] = False


class Suspension(msgspec.Struct, frozen=True):
    """Its cores and memory are given to another workload: from ``at`` on (seconds since 1970) its node keeps it suspended."""

    winner: str  # vm/web; without its name where it is of another project: people of this one read it
    at: float
    named: str = ""  # physics/vm/web, for administrators; "": unknown
    elsewhere_seconds: float = ELSEWHERE_SECONDS  # after ``at``: from then on it may resume on another node


class PlannedPause(msgspec.Struct, frozen=True):
    """A time in which its guest is suspended, as planned when it or another lease was accepted; seconds since 1970."""

    at: float  # its node begins to save its memory
    saved_at: float  # from here on its cores and memory are others'
    until: float  # its node resumes it


class AllocatedLease(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """When an allocation holds its capacity; seconds since 1970."""

    mode: Mode
    start: float  # its guest runs from here on
    end: float | None = None  # here it ends; None: it is open
    prepare_at: float = 0.0  # from here on it takes capacity, to have booted by its start
    preemptible: bool = False
    priority: int = 0
    cancelled: bool = False
    suspension: Suspension | None = None  # for another workload; the scheduler sets and clears it
    suspensions: int = 0  # how often that happened
    suspended_seconds: float = 0.0  # in former suspensions, and in all planned pauses: its end is later by them
    pauses: tuple[PlannedPause, ...] = ()  # in their order, between start and end
    requested: float = 0.0  # seconds that were requested when it got its place: an extension is beyond them; 0: unknown


def find_pause(lease: AllocatedLease | None, now: float) -> PlannedPause | None:
    """The pause that has begun, or is the next one, at ``now``; None: no more are planned."""
    return next((pause for pause in lease.pauses if now < pause.until), None) if lease is not None else None


def end_suspension(lease: AllocatedLease, now: float) -> AllocatedLease:
    """The lease of one that resumes ``now``: the time suspended doesn't count in its duration."""
    if lease.suspension is None:
        return lease
    waited = max(0.0, now - lease.suspension.at)
    return msgspec.structs.replace(
        lease,
        suspension=None,
        suspended_seconds=lease.suspended_seconds + waited,
        end=lease.end + waited if lease.end is not None else None,
    )


def find_next_turn(suspension: Suspension, now: float) -> float:
    """When one that is suspended is looked at again, even if nothing has become free: ever later, up to the end of its patience."""
    wait = suspension.elsewhere_seconds
    while suspension.at + wait <= now and wait < PATIENCE_SECONDS:
        wait *= 2
    return suspension.at + min(wait, PATIENCE_SECONDS)


class LeaseStatus(msgspec.Struct, kw_only=True, frozen=True):
    state: Annotated[
        str,
        words("Requested", "Scheduled", "Preparing", "Active", "Suspended", "Done", "Rejected", "Cancelled"),
    ] = "Requested"
    start: float | None = None  # seconds since 1970; None: not decided
    end: float | None = None  # None: open, or not decided
    message: str = ""
    warned: bool = False  # its end was announced
    late_seconds: float = 0.0  # how much later than promised its workload began


def check_lease(lease: LeaseRequest) -> None:
    """Fills in the mode, and whether it is preemptible. Raises InvalidInput for contradictory fields."""
    if lease.mode is None:
        lease.mode = (
            "reservation" if lease.start is not None else "deadline" if lease.deadline_at is not None else "best-effort"
        )
    if lease.preemptible is None:
        lease.preemptible = lease.mode == "best-effort"
    _require(lease, "start", "reservation")
    _require(lease, "deadline_at", "deadline")
    if lease.mode in ("reservation", "deadline") and lease.duration is None:
        raise InvalidInput(
            f"spec.lease.duration is missing: a lease of mode {lease.mode} has an end",
            field="spec.lease.duration",
            hint="give how long, like 2h",
        )
    if lease.duration is not None and not 1.0 <= lease.duration <= LONGEST_SECONDS:
        raise InvalidInput(
            f"spec.lease.duration: {format_duration(lease.duration)} is not between a second and a year",
            field="spec.lease.duration",
            hint="give a duration like 90m; leave it out for a lease without an end",
        )


def check_new_lease(lease: LeaseRequest, now: float) -> None:
    """Raises InvalidInput for times that have passed by ``now`` or lie too far ahead."""
    for name, moment in (("start", lease.start), ("deadline_at", lease.deadline_at)):
        if moment is None:
            continue
        if moment < now - 1.0:
            raise InvalidInput(
                f"spec.lease.{name}: that was {format_duration(now - moment)} ago",
                field=f"spec.lease.{name}",
                hint="give a time in the future; without an offset a time is in UTC",
            )
        if moment > min(now + FURTHEST_SECONDS, LAST_MOMENT):
            raise InvalidInput(
                f"spec.lease.{name}: that is more than two years ahead",
                field=f"spec.lease.{name}",
                hint="give an earlier time",
            )
    if lease.deadline_at is not None and lease.duration is not None and lease.deadline_at - lease.duration < now:
        raise InvalidInput(
            f"spec.lease.deadline_at: {format_duration(lease.duration)} is longer than the "
            f"{format_duration(lease.deadline_at - now)} left until then",
            field="spec.lease.deadline_at",
            hint="give a later deadline or a shorter duration",
        )


def check_extension(lease: LeaseRequest, old: LeaseRequest | None, status: LeaseStatus | None, now: float) -> None:
    """Raises InvalidInput for a lease that becomes longer than its deadline allows, ``status`` being what came of it."""
    if old is None or lease.deadline_at is None or (lease.duration or 0.0) <= (old.duration or 0.0):
        return
    longer, end = (lease.duration or 0.0) - (old.duration or 0.0), now + (old.duration or 0.0)
    if status is not None and status.end is not None and status.start is not None and status.start <= now:
        end = status.end
    if end + longer > lease.deadline_at:
        left = lease.deadline_at - end
        raise InvalidInput(
            f"spec.lease.duration: with {format_duration(longer)} more it would end {format_duration(longer - left)} after "
            f"spec.lease.deadline_at, {format_moment(lease.deadline_at)}",
            field="spec.lease.duration",
            hint=(f"extend it by {format_duration(math.floor(left))} at most; " if left >= 1.0 else "")
            + "for longer, create another workload with a later deadline",
        )


def _require(lease: LeaseRequest, name: str, mode: str) -> None:
    given = getattr(lease, name) is not None
    if given == (lease.mode == mode):
        return
    if given:
        raise InvalidInput(
            f"spec.lease.{name} goes with spec.lease.mode {mode}, not {lease.mode}",
            field=f"spec.lease.{name}",
            hint=f"leave it out, or give spec.lease.mode {mode}",
        )
    raise InvalidInput(
        f"spec.lease.{name} is missing: a lease of mode {mode} needs it",
        field=f"spec.lease.{name}",
        hint="give a time like 2026-12-24T22:00:00Z",
    )
