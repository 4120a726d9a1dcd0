"""When and where a workload with a lease runs: the first time at which a node has what it requests for all of its lease.

An allocation made for a later time is the promise itself: from then on the calendar counts it, whatever else comes. Pure but for
the engine's caches, and its snapshot, which counts a longer lease at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import msgspec
import numpy as np

from weft.contracts.journal import Event
from weft.contracts.policy import Flags, Request, Values, Whole
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import AllocationReport, AllocationSpec, is_lease_over, slot_key
from weft.kinds.fields.lease import LEASE_CONFLICT, AllocatedLease, LeaseRequest
from weft.kinds.parts.workload import WorkloadSpec
from weft.objects.envelope import Condition, merge_part, set_condition
from weft.objects.quantity import format_bytes, format_cores, format_duration, format_time
from weft.scheduler.allocation.count import count_allocation
from weft.scheduler.constraint.filters import describe_pools
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.table.snapshot import amounts_of

SOURCE = "scheduler"
MOST_STARTS = 32  # at which it is seen whether all of several leases can begin


class Opening(msgspec.Struct, frozen=True):
    row: int
    lease: AllocatedLease


class Conflict(msgspec.Struct, frozen=True):
    """No node has the capacity then. ``later``: from when one would have it (seconds since 1970, infinite: never); ``node``: which;
    ``shorter``: for how many seconds one has it at the requested time."""

    message: str
    later: float = math.inf
    node: str = ""
    shorter: float = 0.0


class _Starts(msgspec.Struct, frozen=True):
    """When each node has what a lease requests for all of it."""

    base: Request  # without what is counted over time
    left: Whole
    start: float
    ahead: float  # so long before its start it takes its capacity
    seconds: float  # for so long it takes it
    found: Values  # by row; infinite: never

    @property
    def first(self) -> float:
        return float(self.found.min()) if len(self.found) else math.inf


def find_slot(
    engine: Engine,
    request: Request,
    uid: str,
    asked: LeaseRequest,
    grace_seconds: float,
    now: float,
    *,
    later: bool = False,
) -> Opening | Conflict:
    """Node and time for workload ``uid``; ``asked`` has a duration. ``later``: the first time will do, however late."""
    duration = asked.duration or 0.0
    if asked.mode == "reservation" and (asked.start or 0.0) < now:
        return Conflict(f"its start, {format_time(asked.start or 0.0)}, has passed")
    starts = _find_starts(engine, request, asked, grace_seconds, now)
    snapshot, ahead, first = engine.snapshot, starts.ahead, starts.first
    earliest = starts.start - ahead
    latest = sys.float_info.max if later else _find_latest(asked, earliest, duration)
    if first <= latest:
        return _open(engine, starts, uid, asked)
    lengths = snapshot.leases.find_lengths(snapshot.uids, starts.left, request.amounts[:2], earliest)
    lengths[~engine.fits(starts.base)] = 0.0
    shorter = float(lengths.max()) - ahead - grace_seconds if len(lengths) else 0.0
    node = snapshot.names[int(starts.found.argmin())] if first < math.inf else ""
    text = describe_lack(asked, request, starts.start)
    text += _describe_nearest(asked, first + ahead, node, shorter) or describe_most_free(
        engine, request, earliest, starts.seconds
    )
    return Conflict(text, first + ahead, node, max(0.0, shorter))


def find_opening(
    engine: Engine,
    request: Request,
    uid: str,
    asked: LeaseRequest,
    grace_seconds: float,
    now: float,
    *,
    later: bool = False,
    barred: Sequence[int] = (),
) -> Opening | None:
    """Find a slot like ``find_slot`` for a best-effort lease, but not on the rows ``barred``, and without a word on what is
    lacking."""
    starts = _find_starts(engine, request, asked, grace_seconds, now)
    starts.found[list(barred)] = math.inf
    return _open(engine, starts, uid, asked) if starts.first <= (sys.float_info.max if later else now) else None


def _find_starts(engine: Engine, request: Request, asked: LeaseRequest, grace_seconds: float, now: float) -> _Starts:
    start, ahead = now, 0.0
    if asked.mode == "reservation":
        assert asked.start is not None
        start, ahead = asked.start, min(engine.leads.find(request), asked.start - now)
    seconds = ahead + (asked.duration or 0.0) + grace_seconds
    base = msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2]))
    snapshot = engine.snapshot
    snapshot.settle()
    left = snapshot.left_for_leases()
    found = snapshot.leases.find_starts(snapshot.uids, left, request.amounts[:2], start - ahead, seconds)
    found[~engine.fits(base)] = math.inf
    return _Starts(base, left, start, ahead, seconds, found)


def _open(engine: Engine, starts: _Starts, uid: str, asked: LeaseRequest) -> Opening:
    """Open a lease on the best of the nodes that have it first."""
    first, duration = starts.first, asked.duration or 0.0
    begin = first + starts.ahead
    lease = AllocatedLease(
        mode=asked.mode or "best-effort",
        start=begin,
        end=begin + duration,
        prepare_at=first,
        preemptible=bool(asked.preemptible),
        priority=asked.priority,
        requested=duration,
    )
    return Opening(_choose(engine, starts.base, uid, starts.found == first), lease)


def list_nearest(
    engine: Engine, request: Request, asked: LeaseRequest, grace_seconds: float, now: float, most: int
) -> list[int]:
    """The rows of nodes that may have it at any time at all, those that have it soonest first."""
    found = _find_starts(engine, request, asked, grace_seconds, now).found
    order = np.argsort(found, kind="stable")[:most]
    return [int(row) for row in order if found[row] < math.inf]


def find_start_of_all(
    engine: Engine, request: Request, asked: LeaseRequest, grace_seconds: float, now: float, count: int
) -> float:
    """The first whole second, not before its start, at which nodes have what ``count`` such leases request; infinite: never."""
    assert asked.start is not None
    ahead, snapshot = engine.leads.find(request), engine.snapshot
    seconds, at = ahead + (asked.duration or 0.0) + grace_seconds, max(now, asked.start - ahead)
    snapshot.settle()
    left, fits = snapshot.left_for_leases(), engine.fits(msgspec.structs.replace(request, amounts=(0, 0, 0)))
    cpu, memory, _ = request.amounts
    for _ in range(MOST_STARTS):
        found = list[Values]()  # by how many a node takes at once: when at the earliest
        for several in range(1, count + 1):
            starts = snapshot.leases.find_starts(snapshot.uids, left, (several * cpu, several * memory), at, seconds)
            starts = starts[fits & (starts < math.inf)]
            if not len(starts):
                break
            found.append(starts)
        every = np.concatenate(found) if found else np.zeros(0)
        if len(every) < count:
            return math.inf
        first = float(np.partition(every, count - 1)[count - 1])
        if first <= at:
            return float(math.ceil(at + ahead))
        at = first  # none before; but not all of them need be free then
    return math.inf


def find_extension(engine: Engine, node_uid: str, held: tuple[int, int], start: float, end: float) -> float:
    """Latest time, ``end`` at most, until which a node has ``held`` from ``start`` on: how far a lease that ends there can be
    extended."""
    snapshot = engine.snapshot
    row = snapshot.index_of(node_uid)
    if row is None:
        return start
    left = snapshot.left_for_leases()[:, [row]]
    free = snapshot.leases.find_lengths([node_uid], left, held, start)
    return min(end, start + float(free[0]))


def has_other_end(view: View, allocation: Item, spec: WorkloadSpec) -> bool:
    """Whether its workload's lease, or the reservation that it is in, was extended or shortened since it was written."""
    place = allocation.spec(AllocationSpec)
    if is_lease_over(place, allocation.report(AllocationReport)):
        return False
    return (_find_end(place, spec) if place.slot is None else _find_slots_end(view, place)) is not None


def plan_extension(engine: Engine, workload: Item, allocation: Item, now: float) -> Commit | None:
    """Give the allocation the end that its workload requests by now; where others have the capacity then, record until when it
    could last. None if nothing changes."""
    place, spec = allocation.spec(AllocationSpec), spec_of(workload)
    end, lease = _find_end(place, spec), place.lease
    if end is None or lease is None or lease.end is None or lease.end <= now:
        return None  # an ended lease is never restarted
    amounts = amounts_of(place.resources)
    most = end
    if end > lease.end:
        grace = place.grace_seconds
        # Who requests little and extends mustn't delay the first of the queue, which it may have started before.
        with engine.snapshot.trial() as trial:
            for number, kept in enumerate(engine.leases.held if lease.mode == "best-effort" else ()):
                trial.put_leased(f"first/{number}", kept, 0)
            most = find_extension(engine, place.node_uid, amounts[:2], lease.end + grace, end + grace) - grace
    if most < end:
        return _plan_conflict(workload, place, end, most, now)
    envelope, of, end = edit(workload), workload.envelope, max(end, now)
    set_condition(envelope, Condition("Placed", "True", "Placed", f"on {place.node}", now, of.generation))
    changed = edit(allocation)
    longer = msgspec.structs.replace(place, lease=msgspec.structs.replace(lease, end=end))
    changed.spec = merge_part(changed.spec, longer)
    changed.generation += 1
    if end > lease.end:  # counted at once: what is decided on before it is stored gets none of it
        count_allocation(engine.snapshot, allocation.key, Item(changed, spec=longer), now)
    event = Event("Normal", "LeaseExtended", f"its lease ends at {format_time(end)}", of.ref, SOURCE)
    return Commit(workload.key, [put(changed), put(envelope)], [unchanged(workload), unchanged(allocation)], [event])


def join_replanned(commit: Commit, workload: Item, allocation: Item, lease: AllocatedLease, now: float) -> Commit:
    """``commit``, which gives another lease its place, with other times for this one on its node, as its deadline lets it."""
    spec, changed, envelope = allocation.spec(AllocationSpec), edit(allocation), edit(workload)
    held, of = spec.lease, workload.envelope
    changed.spec = merge_part(changed.spec, msgspec.structs.replace(spec, lease=lease))
    changed.generation += 1
    writes = [put(changed)]
    text = f"it begins at {format_time(lease.start)} instead"
    if held is not None and held.start == lease.start:
        text = "it is suspended in between"
    elif set_condition(
        envelope, Condition("Placed", "True", "Placed", describe_place(spec, lease, now), now, of.generation)
    ):
        writes.append(put(envelope))
    text = f"another lease needs its place: {text}, and is done by {format_time(lease.end or now)}"
    event = Event("Normal", "LeaseReplanned", text, of.ref, SOURCE)
    return Commit(
        commit.key,
        [*commit.writes, *writes],
        [*commit.preconditions, unchanged(workload), unchanged(allocation)],
        [*commit.events, event],
        commit.made,
    )


def plan_shortened(workload: Item, allocation: Item, lease: AllocatedLease, now: float) -> Commit:
    """Other times for a lease, since nothing needs its pauses any more."""
    spec, changed = allocation.spec(AllocationSpec), edit(allocation)
    changed.spec = merge_part(changed.spec, msgspec.structs.replace(spec, lease=lease))
    changed.generation += 1
    text = f"nothing needs its place any more as planned: it is done by {format_time(lease.end or now)}"
    event = Event("Normal", "LeaseReplanned", text, workload.envelope.ref, SOURCE)
    return Commit(workload.key, [put(changed)], [unchanged(workload), unchanged(allocation)], [event])


def describe_place(spec: AllocationSpec, lease: AllocatedLease | None, now: float) -> str:
    """Place and time of a lease, like ``on n1, from 2026-12-24 14:00 UTC``."""
    later = lease is not None and lease.start > now
    return f"on {spec.node}, from {format_time(lease.start)}" if later and lease is not None else f"on {spec.node}"


def plan_within(view: View, workload: Item, allocation: Item, now: float) -> Commit | None:
    """Give an allocation in a slot the later end of its slot; None if it ends with it already, or has ended."""
    place = allocation.spec(AllocationSpec)
    end = _find_slots_end(view, place)
    if end is None or place.lease is None or place.lease.end is None or place.lease.end <= now:
        return None
    changed = edit(allocation)
    longer = msgspec.structs.replace(place, lease=msgspec.structs.replace(place.lease, end=end))
    changed.spec = merge_part(changed.spec, longer)
    changed.generation += 1
    text = f"its reservation ends later: its lease ends at {format_time(end)}"
    event = Event("Normal", "LeaseExtended", text, workload.envelope.ref, SOURCE)
    slot = view.get(slot_key(place))
    assert slot is not None
    preconditions = [unchanged(workload), unchanged(allocation), unchanged(slot)]
    return Commit(workload.key, [put(changed)], preconditions, [event])


def find_end_within(end: float, slot_grace: float, grace: float) -> float:
    """When a workload with ``grace`` ends, in a slot that ends at ``end``: it has shut down when the slot's grace is over."""
    return end - max(0.0, grace - slot_grace)


def _find_slots_end(view: View, place: AllocationSpec) -> float | None:
    """The later end of an allocation in a slot; None if it has that of its slot already."""
    slot = view.get(slot_key(place)) if place.slot is not None else None
    if slot is None or place.lease is None or place.lease.end is None or place.lease.cancelled:
        return None
    of = slot.spec(AllocationSpec)
    if of.lease is None or of.lease.end is None:
        return None
    end = find_end_within(of.lease.end, of.grace_seconds, place.grace_seconds)
    return end if end > place.lease.end + 0.001 else None


def _plan_conflict(workload: Item, place: AllocationSpec, end: float, most: float, now: float) -> Commit | None:
    """Record until when its lease could last."""
    envelope, of = edit(workload), workload.envelope
    text = f"on {place.node}; cannot extend its lease to {format_time(end)}; the latest possible end is {format_time(most)}"
    if not set_condition(envelope, Condition("Placed", "True", LEASE_CONFLICT, text, now, of.generation)):
        return None
    event = Event("Warning", LEASE_CONFLICT, text, of.ref, SOURCE)
    return Commit(workload.key, [put(envelope)], [unchanged(workload)], [event])


def _find_end(place: AllocationSpec, spec: WorkloadSpec) -> float | None:
    """The end that a lease should have; None if it has it, or has none."""
    lease, asked = place.lease, spec.lease
    if lease is None or lease.end is None or lease.cancelled or asked is None or asked.duration is None:
        return None
    if lease.suspension is not None:
        return None
    end = lease.start + asked.duration + lease.suspended_seconds
    return end if abs(end - lease.end) > 0.001 else None


def _find_latest(asked: LeaseRequest, earliest: float, duration: float) -> float:
    if asked.mode == "deadline":
        assert asked.deadline_at is not None
        return asked.deadline_at - duration
    return earliest


def _choose(engine: Engine, request: Request, uid: str, free: Flags) -> int:
    """The one of the free nodes that the workload's strategy likes best; the first by name of several."""
    if np.count_nonzero(free) == 1:
        return int(np.argmax(free))
    return int(np.argmax(np.where(free, engine.scores(request, uid), -math.inf)))


def describe_amounts(request: Request) -> str:
    """``8 free cores and 128 MiB``, and GPUs"""
    text = f"{format_cores(request.amounts[0] / 1000).replace(' ', ' free ')} and {format_bytes(request.amounts[1])}"
    return text if request.gpus is None else f"{text} and {request.gpus.count * request.gpus.share / 1000:g} GPUs"


def describe_lack(asked: LeaseRequest, request: Request, start: float) -> str:
    duration = asked.duration or 0.0
    when = f"for {format_duration(duration)} now" if duration < math.inf else "now, without an end"
    if asked.mode == "reservation":
        when = f"from {format_time(start)} to {format_time(start + duration)}"
    if asked.mode == "deadline" and asked.deadline_at is not None:
        when = f"for {format_duration(duration)} in time to be done by {format_time(asked.deadline_at)}"
    return f"no node has {describe_amounts(request)} {when}"


def format_earliest(moment: float) -> str:
    """Format a time to the next whole minute: who asks for that time has it."""
    return format_time(math.ceil(moment / 60.0) * 60.0)


def _describe_nearest(asked: LeaseRequest, later: float, node: str, shorter: float) -> str:
    """Describe the nearest alternative by time, as the end of a sentence; empty if nothing fits."""
    text = f"; earliest: {format_earliest(later)} on {node}" if later < math.inf else ""
    if shorter >= 60.0 and asked.mode != "deadline":
        text += f"{',' if text else ';'} or at most {format_duration(shorter)} at the requested time"
    return text


def describe_most_free(engine: Engine, request: Request, start: float, seconds: float) -> str:
    """Free capacity through all that time of the node that comes nearest, as the end of a sentence: ``; most free: 1 core, 3.9 GiB
    (n1)``"""
    snapshot = engine.snapshot
    fits = engine.fits(msgspec.structs.replace(request, amounts=(0, 0, 0)))
    if not fits.any():
        return f"; {describe_pools(snapshot, request) or 'no node may take it, whatever is free'}"
    free = np.maximum(snapshot.left_for_leases() - snapshot.leases.find_taken(snapshot.uids, start, seconds), 0)
    wanted = np.maximum(np.array(request.amounts[:2]), 1)[:, np.newaxis]
    row = int(np.argmax(np.where(fits, (free / wanted).min(axis=0), -1.0)))
    return f"; most free: {format_cores(free[0, row] / 1000)}, {format_bytes(free[1, row])} ({snapshot.names[row]})"
