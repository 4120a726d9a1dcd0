"""Places for a gang with leases that end: all members fit for all of their time, or none gets a place.

Members are tried one after the other, large ones first, each counted in the calendar before the next, and removed again. Members
with a deadline begin together, at the first time at which all of them fit. Not every combination is tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from weft.contracts.policy import Request
from weft.kinds.fields.lease import AllocatedLease, LeaseRequest
from weft.scheduler.allocation.lease import Conflict, Opening, describe_amounts, find_slot
from weft.scheduler.allocation.promise import find_again
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.table.trial import Trial

MOST_STARTS = 16  # tried for members with deadlines
_TRIAL = "gang/"  # begins the names of trial allocations: no key of an object begins so


class LeasedMember(msgspec.Struct, frozen=True):
    request: Request
    uid: str
    name: str  # vm/web-1
    asked: LeaseRequest | None  # None: it has its place for good
    held: AllocatedLease | None  # the lease that it had begun on a node that was given up
    grace_seconds: float


class LeasedPlace(msgspec.Struct, frozen=True):
    row: int
    lease: AllocatedLease | None


class Refusal(msgspec.Struct, frozen=True):
    """``lacking`` has no place when so many others are ``placed``."""

    lacking: int
    placed: int
    conflict: Conflict


def open_lease(asked: LeaseRequest, now: float) -> AllocatedLease:
    """The lease, from now on, of one that requests no end."""
    return AllocatedLease(
        mode=asked.mode or "best-effort",
        start=now,
        prepare_at=now,
        preemptible=bool(asked.preemptible),
        priority=asked.priority,
    )


def find_leased_places(engine: Engine, members: Sequence[LeasedMember], now: float) -> dict[int, LeasedPlace] | Refusal:
    """The places by member, in the order in which they must be counted; or who lacks one."""
    found, start = _try(engine, members, None, now), -math.inf
    for _ in range(MOST_STARTS):
        if not isinstance(found, Refusal) or not _has_deadline(members[found.lacking]):
            return found
        if not start < found.conflict.later < math.inf:
            return found
        start = found.conflict.later
        found = _try(engine, members, start, now)
    return found


def _try(
    engine: Engine, members: Sequence[LeasedMember], start: float | None, now: float
) -> dict[int, LeasedPlace] | Refusal:
    """Try to place members with a deadline at ``start``; None: as soon as the first of them can begin."""
    places = dict[int, LeasedPlace]()
    with engine.snapshot.trial() as trial:
        for number in sorted(range(len(members)), key=lambda i: (members[i].request.amounts[:2], -i), reverse=True):
            member = members[number]
            found = _find_place(engine, member, start, now)
            if isinstance(found, Conflict):
                return Refusal(number, len(places), found)
            if start is None and _has_deadline(member) and found.lease is not None:
                start = found.lease.start
            places[number] = found
            count_member(engine, trial, f"{_TRIAL}{number}", member, found)
        return places


def _find_place(engine: Engine, member: LeasedMember, start: float | None, now: float) -> LeasedPlace | Conflict:
    asked, request = member.asked, member.request
    if asked is None or asked.duration is None:
        row = engine.choose(request, member.uid)
        if row is None:
            return Conflict(f"no node has {describe_amounts(request)} now, without an end")
        return LeasedPlace(row, None if asked is None else open_lease(asked, now))
    if member.held is not None:
        found = find_again(engine, request, member.uid, asked, member.held, member.grace_seconds, now)
    elif start is not None and _has_deadline(member):
        assert asked.deadline_at is not None
        if start > asked.deadline_at - asked.duration:
            return Conflict("no node has the capacity at a time at which the others have it, before its deadline")
        then = msgspec.structs.replace(asked, mode="reservation", start=start)
        found = find_slot(engine, request, member.uid, then, member.grace_seconds, now)
    else:
        found = find_slot(engine, request, member.uid, asked, member.grace_seconds, now)
    if isinstance(found, Opening):
        return LeasedPlace(found.row, msgspec.structs.replace(found.lease, mode=asked.mode or "best-effort"))
    return found


def count_member(engine: Engine, trial: Trial, key: str, member: LeasedMember, place: LeasedPlace) -> None:
    """Count its place until the end of ``trial``."""
    request, lease = member.request, place.lease
    uid, load = engine.snapshot.uids[place.row], engine.load(request, place.row)
    if load.groups:
        load = msgspec.structs.replace(load, workload=member.name)
    if lease is None or lease.end is None:
        trial.put(key, uid, request.amounts, load)
        return
    held = CalendarEntry(uid, lease.prepare_at, lease.end + member.grace_seconds, request.amounts[:2])
    trial.put_leased(key, held, request.amounts[2], load)


def _has_deadline(member: LeasedMember) -> bool:
    return member.asked is not None and member.asked.mode == "deadline"
