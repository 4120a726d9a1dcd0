"""Counts in the snapshot what takes capacity on nodes: allocations, and guests that a node has without one."""

from __future__ import annotations

import math

import msgspec

from weft.informer.pool.claims import list_claims_of
from weft.informer.view import Changed, Item, View
from weft.kinds.allocation import (
    AllocationReport,
    AllocationSpec,
    account,
    account_within,
    allocation_name,
    has_ended_for_good,
    has_given_way,
    is_lease_over,
    is_lost,
    is_slot,
    slot_key,
)
from weft.kinds.fields.lease import AllocatedLease, find_next_turn
from weft.kinds.node import NodeReport
from weft.kinds.parts.node.orphan import OrphanCopy, read_copies
from weft.objects.identity import object_key
from weft.scheduler.lease.calendar import CalendarEntry, Held
from weft.scheduler.lease.slots import SlotFacts
from weft.scheduler.table.facts import NO_LOAD, Load, amounts_of, amounts_on, disks_of, load_of
from weft.scheduler.table.snapshot import Snapshot


def count_allocation(snapshot: Snapshot, key: str, allocation: Item | None, now: float) -> None:
    """Count what an allocation takes; None: it is gone. A lease whose end has passed by ``now`` takes its capacity until its node
    has reported that it is over. One that is suspended for another workload takes its disk; once it has waited long, all of it
    again: what becomes free is kept for it."""
    if allocation is None:
        snapshot.drop_allocation(key)
        return
    spec = allocation.spec(AllocationSpec)
    snapshot.drop_allocation(_name_orphan(allocation.uid))  # it is no orphan any more
    report = allocation.report(AllocationReport)
    over = is_lease_over(spec, report)
    ended, load = over or has_ended_for_good(spec, report), _read_load(spec, report)
    if spec.slot is not None:
        within = account_within(spec, report)
        snapshot.put_slotted(key, spec.node_uid, slot_key(spec), amounts_on(spec, within), load)
        return
    if is_slot(spec) and spec.lease is not None:
        snapshot.slots.put(key, read_slot(spec, spec.lease))
    amounts = amounts_on(spec, account(spec, report))
    if (lease := spec.lease) is None or ended:
        snapshot.put_allocation(key, spec.node_uid, amounts, load)
        return
    if lease.suspension is not None and has_given_way(spec, report):
        turn = find_next_turn(lease.suspension, now)
        if now >= turn:
            snapshot.put_allocation(key, spec.node_uid, amounts_on(spec, spec.resources), load)
        else:  # a lease of nothing: it is counted anew at its end
            snapshot.put_leased(key, CalendarEntry(spec.node_uid, lease.suspension.at, turn, (0, 0)), amounts[2], load)
        return
    if lease.end is None and lease.suspension is None:
        snapshot.put_allocation(key, spec.node_uid, amounts, load)
        return
    if lease.pauses and lease.suspension is None:
        amounts = amounts_on(spec, spec.resources)
        held = read_entry(spec.node_uid, lease, spec.grace_seconds, amounts[:2], now, rests=has_given_way(spec, report))
        snapshot.put_leased(key, held, amounts[2], load)
        return
    end = lease.end + spec.grace_seconds if lease.end is not None else math.inf
    if lease.suspension is not None:
        end = min(end, lease.suspension.at)
    held = CalendarEntry(spec.node_uid, lease.prepare_at, end if now < end else math.inf, amounts[:2])
    snapshot.put_leased(key, held, amounts[2], load)


def read_entry(
    node_uid: str, lease: AllocatedLease, grace_seconds: float, amounts: Held, now: float, *, rests: bool = False
) -> CalendarEntry:
    """When a lease with an end takes ``amounts``: not in its pauses, but for one in which its node hasn't reported by ``now`` that
    it ``rests``."""
    assert lease.end is not None
    ends = [*(min(pause.saved_at, lease.end) for pause in lease.pauses), lease.end + grace_seconds]
    starts = [lease.prepare_at, *(min(pause.until, lease.end) for pause in lease.pauses)]
    stretches = list(zip(starts, ends, strict=True))
    while len(stretches) > 1 and stretches[0][1] <= now:
        (start, _), (again, end) = stretches[:2]
        kept = start if now < again and not rests else again
        stretches[:2] = [(kept, end)]
    (start, end), *later = stretches
    return CalendarEntry(node_uid, start, end if now < end else math.inf, amounts, tuple(later))


def _read_load(spec: AllocationSpec, report: AllocationReport) -> Load:
    """Load of an allocation beside amounts: of a lease that is over, and of a lost one, its disks."""
    if has_ended_for_good(spec, report):
        return NO_LOAD
    return disks_of(spec) if is_lost(spec) or is_lease_over(spec, report) else load_of(spec)


def count_disks(snapshot: Snapshot, change: Changed) -> None:
    """Volumes keep their place in a pool whether they are attached or not, and so do the snapshots that a node has."""
    old, new = list_claims_of(change.old), list_claims_of(change.new)
    if old != new:
        snapshot.hold(new)
        snapshot.release(old)


def read_slot(spec: AllocationSpec, lease: AllocatedLease) -> SlotFacts:
    cpu, memory, _ = amounts_of(spec.resources)
    return SlotFacts(
        reservation=spec.workload.uid,
        node_uid=spec.node_uid,
        amounts=(cpu, memory),
        gpus=load_of(spec).gpus,
        ready_at=lease.prepare_at,
        start=lease.start,
        end=lease.end if lease.end is not None else math.inf,
        grace_seconds=spec.grace_seconds,
    )


def count_orphans(snapshot: Snapshot, view: View, change: Changed) -> None:
    """Guests that a node has without an allocation take capacity there like any other."""
    for copy in _read_guests(change.old):
        snapshot.drop_allocation(_name_orphan(copy.uid))
    for copy in _read_guests(change.new):
        spec = copy.spec
        if view.get(object_key("allocation", None, allocation_name(spec.node_uid, copy.uid))) is None:
            load = load_of(msgspec.structs.replace(spec, memberships=[]))
            snapshot.put_allocation(_name_orphan(copy.uid), spec.node_uid, amounts_on(spec, spec.resources), load)


def count_booting(snapshot: Snapshot, change: Changed) -> None:
    """An image that a node boots for itself, to start VMs from, takes memory there like an allocation."""
    memory = change.new.report(NodeReport).booting_memory if change.new is not None else 0
    name = f"booting {change.item.uid}"
    if memory > 0:
        snapshot.put_allocation(name, change.item.uid, (0, memory, 0))
    else:
        snapshot.drop_allocation(name)


def _read_guests(node: Item | None) -> list[OrphanCopy]:
    """Copies of allocations that a node has without one, but for those that never ran there or have left."""
    copies = read_copies(node.report(NodeReport)) if node is not None else []
    return [copy for copy in copies if copy.standing in ("here", "open")]


def _name_orphan(uid: str) -> str:
    return f"orphan {uid}"
