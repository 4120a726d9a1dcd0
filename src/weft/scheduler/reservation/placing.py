"""Choose the slot of its reservation that a workload gets: of those with what it requests, the one with the least left. Pure."""

from __future__ import annotations

import msgspec

from weft.contracts.policy import GpuAsk, Request
from weft.informer.shares import describe_missing, find_named
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.fields.lease import LEASE_CONFLICT, AllocatedLease
from weft.kinds.reservation import OVER, ReservationStatus
from weft.objects.quantity import format_bytes, format_cores, format_time
from weft.scheduler.allocation.lease import find_end_within
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.lease.slots import Devices, Free, SlotFacts
from weft.scheduler.table.facts import Gpu, Load
from weft.scheduler.workload.request import Candidate, Waiting


class Within(msgspec.Struct, frozen=True):
    """A place in slot ``slot`` (its key), on the node of ``row``."""

    row: int
    slot: str
    load: Load
    lease: AllocatedLease
    note: str  # a sentence for people


def without_slot(request: Request) -> Request:
    """Request of a workload in a slot to its node beside the slot."""
    return msgspec.structs.replace(request, amounts=(0, 0, request.amounts[2]), gpus=None)


def find_within(view: View, engine: Engine, candidate: Candidate, now: float) -> Within | Waiting:
    """The place of a workload with ``spec.reservation``, or why it has none."""
    found = list_within(view, engine, candidate, now)
    return found if isinstance(found, Waiting) else found[0]


def list_within(view: View, engine: Engine, candidate: Candidate, now: float) -> list[Within] | Waiting:
    """The places that it could have, the one with the least left first; or why there is none."""
    workload, request, spec = candidate.workload, candidate.request, spec_of(candidate.workload)
    what = f"reservation/{spec.reservation}"
    item = find_named(view, workload, "reservation", spec.reservation or "")
    if item is None or item.deleting:
        return Waiting("reservationNotFound", f"{what} {describe_missing(workload, spec.reservation or '')}")
    snapshot = engine.snapshot
    snapshot.settle()
    found = [(key, slot) for key in snapshot.slots.of(item.uid) if (slot := snapshot.slots.get(key)) is not None]
    ends = {key: find_end_within(slot.end, slot.grace_seconds, spec.grace) for key, slot in found}
    slots = [(key, slot) for key, slot in found if ends[key] > now + 1.0]
    if not slots:
        return _find_state(item, what, max(ends.values(), default=None))
    base = without_slot(request)
    fits, bars, fitting = engine.fits(base), list[str](), list[tuple[int, int, str, int, SlotFacts, Devices]]()
    for key, slot in slots:
        free, row = snapshot.slots.free(key), snapshot.index_of(slot.node_uid)
        gpus = _choose_gpus(request.gpus, free, () if row is None else snapshot.facts[row].gpus)
        if row is None or gpus is None or free.cpu < request.amounts[0] or free.memory < request.amounts[1]:
            continue
        if fits[row]:
            fitting.append((free.cpu, free.memory, key, row, slot, gpus))
        else:
            bars.append(describe_bar(engine, base, row))
    if not fitting:
        frees = [snapshot.slots.free(key) for key, _ in slots]
        return Waiting("reservationFull", _describe_full(what, request, frees, bars))
    places, order = list[Within](), snapshot.slots.of(item.uid)
    for _, _, key, row, slot, gpus in sorted(fitting, key=lambda one: one[:3]):
        start = max(now, slot.start)
        lease = AllocatedLease(mode="reservation", start=start, end=ends[key], prepare_at=max(now, slot.ready_at))
        place = f"slot {order.index(key) + 1} of {len(found)} of {what} on {snapshot.names[row]}"
        note = f"it uses {_describe(request)} of {place}, until {format_time(ends[key])}"
        load = Load(request.extras, gpus, request.groups, claims=engine.claims(request, row))
        places.append(Within(row, key, load, lease, note))
    return places


def _find_state(item: Item, what: str, end: float | None) -> Waiting:
    """Why a reservation has no slot that a workload could be in."""
    status, placed = item.status(ReservationStatus), item.envelope.condition("Placed")
    if end is not None or status.state in OVER[:1]:
        over = status.end if end is None else end
        return Waiting("reservationOver", f"{what} is over" + (f" since {format_time(over)}" if over else ""))
    if placed is not None and placed.reason == LEASE_CONFLICT:
        return Waiting("reservationRefused", f"{what} has no capacity: {placed.message}")
    return Waiting("reservationPending", f"{what} has no capacity yet")


def _choose_gpus(ask: GpuAsk | None, free: Free, there: tuple[Gpu, ...]) -> Devices | None:
    """The slot's devices that a workload gets, those with the least left first; None if it hasn't enough."""
    if ask is None:
        return ()
    fitting = sorted(
        (left, index)
        for index, left in free.gpus.items()
        if left >= ask.share
        and index < len(there)
        and there[index].memory >= ask.memory
        and (not ask.models or there[index].model in ask.models)
    )
    return tuple((index, ask.share) for _, index in fitting[: ask.count]) if len(fitting) >= ask.count else None


def describe_bar(engine: Engine, base: Request, row: int) -> str:
    """Why the slot's node doesn't take it, whatever is free: ``n1: cordoned``."""
    for filter_, flags in engine.refusers(base):
        if flags[row]:
            return f"{engine.snapshot.names[row]}: {filter_.explain(engine.snapshot, base, row)[0]}"
    return engine.snapshot.names[row]


def _describe_full(what: str, request: Request, frees: list[Free], bars: list[str]) -> str:
    if bars:
        return (
            f"{what} has {_describe(request)} only where the node doesn't take it: {', '.join(sorted(set(bars))[:3])}"
        )
    best = max(frees, key=lambda free: (free.cpu, free.memory))
    count = f"its {len(frees)} slots have" if len(frees) > 1 else "its slot has"
    gpus = (
        f", {max(sum(share for share in free.gpus.values()) for free in frees) / 1000:g} GPUs" if request.gpus else ""
    )
    most = f"{format_cores(max(0, best.cpu) / 1000)}, {format_bytes(max(0, best.memory))} of memory{gpus}"
    return f"{what} is full: {_describe(request)} requested, {count} at most {most} free"


def _describe(request: Request) -> str:
    cpu, memory, _ = request.amounts
    gpus = "" if request.gpus is None else f", {request.gpus.count * request.gpus.share / 1000:g} GPUs"
    return f"{format_cores(cpu / 1000)}, {format_bytes(memory)} of memory{gpus}"
