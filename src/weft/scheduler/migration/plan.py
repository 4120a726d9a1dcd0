"""Gives a Migration its target: decides on the workload as if it had no place, on all nodes but its own, and makes source and
target in one commit. For a Migration that is planned for later it makes a reservation, an allocation that only takes capacity; at
the start time the target replaces it, in one commit, if it still fits. Pure but for the snapshot, which counts either at once.

What doesn't fit now is tried again while its Migration waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.contracts.store import Absent, Precondition, Write
from weft.contracts.trace.context import hand_over
from weft.informer.commit import Commit, delete, edit, put, unchanged
from weft.informer.view import Changed, Item, View
from weft.informer.workloads import find_reservation
from weft.kinds.allocation import AllocationReport, AllocationSpec, account, is_reservation, list_disks
from weft.kinds.fields.allocated_migration import AllocatedMigration, read_migration
from weft.kinds.migration import (
    MIGRATIONS_BY_UID,
    MIGRATIONS_BY_WORKLOAD,
    MigrationActions,
    MigrationSpec,
    MigrationStatus,
    migration_key,
    stands_still,
    workload_key,
)
from weft.kinds.node import NODES_BY_UID, NodeReport, pool_id
from weft.objects.envelope import Condition, merge_part, set_condition
from weft.objects.identity import new_uid
from weft.scheduler.allocation.bind import SOURCE, Timing, choose_cpu, make_allocation, put_decision, read_gpus
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.migration.checkpointing import has_choice
from weft.scheduler.migration.history import read_lesson
from weft.scheduler.migration.target import (
    MigrationCandidate,
    decide,
    describe_refusal,
    describe_way,
    read_migration_candidate,
)
from weft.scheduler.table.facts import Load, name_workload
from weft.scheduler.workload.request import Candidate, Waiting, locate_volumes

AGAIN_SECONDS = {"target": 1.0, "reservation": 10.0}
Want = Literal["target", "reservation"]


class MigrationQueue:
    """The Migrations that want a target, or a reservation."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Want, float]] = {}  # what they want, and when to plan again
        self.assumed: list[str] = []  # keys of allocations in commits whose outcome isn't known

    def notice(self, view: View, change: Changed) -> None:
        """Note a change of a Migration, or of a reservation."""
        if change.kind == "migration":
            self._note(change.key, _find_want(view, change.new) if change.new is not None else None)
        elif any(is_reservation(item) for item in (change.old, change.new) if item is not None):
            migration = change.item.spec(AllocationSpec).migration
            for item in view.find(MIGRATIONS_BY_UID, read_migration(migration.key)) if migration is not None else ():
                self._note(item.key, _find_want(view, item))

    def _note(self, key: str, want: Want | None) -> None:
        if want is None:
            self._open.pop(key, None)
        elif key not in self._open or self._open[key][0] != want:
            self._open[key] = (want, 0.0)

    def wait(self, elapsed: float) -> float | None:
        """Seconds until the next plan; None: there is nothing to plan."""
        return max(0.0, min(at for _, at in self._open.values()) - elapsed) if self._open else None

    def plan(
        self, view: View, engine: Engine, strategy: str, silent: list[str], now: float, elapsed: float
    ) -> list[Commit]:
        """A target or reservation for each whose turn it is, or why there is none."""
        commits, reserved = [], set[str]()
        for key, (want, at) in list(self._open.items()):
            item = view.get(key)
            if item is None or at > elapsed:
                continue
            self._open[key] = (want, elapsed + AGAIN_SECONDS[want])
            workload = workload_key(item)
            if want == "reservation" and workload in reserved:
                continue  # of another migration of its workload, in this very round
            plan = plan_target if want == "target" else plan_reservation
            commit, assumed = plan(view, engine, item, strategy, silent, now)
            if assumed:
                reserved.add(workload)
            commits += [commit] if commit is not None else []
            self.assumed += assumed
        return commits


def plan_target(
    view: View, engine: Engine, item: Item, strategy: str, silent: list[str], now: float
) -> tuple[Commit | None, list[str]]:
    """Source and target of a migration, or the refusal; and the keys of the allocations that it makes or deletes. The target
    replaces the reservation, if the workload still fits there: it is another allocation, so that an allocation that a node knows
    never was a reservation, even in a restored store."""
    migrating = _read(view, item, strategy, silent, later=False)
    if not isinstance(migrating, MigrationCandidate):
        return _plan_waiting(item, migrating, now), []
    reservation = find_reservation(view, item)
    held = [reservation] if reservation is not None else []
    found = _decide_again(engine, migrating, reservation) if reservation is not None else None
    candidate, row, explanation = found or decide(engine, migrating, held, item.status(MigrationStatus).avoid)
    timing = Timing(now, 0.0)
    if row is None:
        return _plan_refusal(
            view, engine, item, msgspec.structs.replace(migrating, candidate=candidate), explanation, timing
        ), []
    node = view.find(NODES_BY_UID, engine.snapshot.uids[row])[0]
    load = _load(engine, migrating, candidate, row, held)
    uid = new_uid()
    source, target = _make_specs(view, item, migrating, node, uid, load)
    there = make_allocation(migrating.candidate.workload, target, uid, now).envelope
    for one in held:
        engine.snapshot.drop_allocation(one.key)
    engine.snapshot.put_allocation(there.key, node.uid, candidate.request.amounts, load)
    here = edit(migrating.source)
    here.spec = merge_part(here.spec, source)
    here.generation += 1
    hand_over(item.envelope, here)
    hand_over(item.envelope, there)
    placed = _put_condition(item, Condition("Placed", "True", "Placed", f"on {node.envelope.name}", now))
    writes: list[Write] = [*(delete(one) for one in held), put(there), put(here)]
    writes += [placed] if placed is not None else []
    if found is None:  # else the decision from when it was planned still holds
        writes.append(put_decision(view, item, candidate, explanation, timing))
    commit = Commit(
        item.key,
        writes,
        [*_unchanged(item, migrating, node), Absent(there.key), *(unchanged(one) for one in held)],
        [
            Event(
                "Normal",
                "Placed",
                f"{source.node} → {node.envelope.name}{_describe_saving(view, migrating, item, node)}",
                item.envelope.ref,
                SOURCE,
            )
        ],
    )
    return commit, [there.key, *(one.key for one in held)]


def plan_reservation(
    view: View, engine: Engine, item: Item, strategy: str, silent: list[str], now: float
) -> tuple[Commit | None, list[str]]:
    """The reservation of a migration that is planned for later, or the refusal; and the reservation's key. No node does anything
    for it, so it has nothing but its amounts. Of several planned migrations of a workload one at a time has one."""
    if (holder := _find_holder(view, item)) is not None:
        workload = item.spec(MigrationSpec).workload
        message = f"migration/{holder.envelope.name} holds capacity for {workload} already, and one at a time does"
        return _plan_waiting(item, Waiting("reservedForAnother", message), now), []
    migrating = _read(view, item, strategy, silent, later=True)
    if not isinstance(migrating, MigrationCandidate):
        return _plan_waiting(item, migrating, now), []
    candidate, row, explanation = decide(engine, migrating)
    timing = Timing(now, 0.0)
    if row is None:
        return _plan_refusal(
            view, engine, item, msgspec.structs.replace(migrating, candidate=candidate), explanation, timing
        ), []
    node, uid = view.find(NODES_BY_UID, engine.snapshot.uids[row])[0], new_uid()
    load = _load(engine, migrating, candidate, row, [])
    place = migrating.source
    held = msgspec.structs.replace(
        _make_specs(view, item, migrating, node, uid, load)[1],
        role="reserved",
        incarnation=0,
        resources=account(place.spec(AllocationSpec), place.report(AllocationReport)),
        volumes=[],
        nics=[],
        groups=[],
        user_data="",
        ssh_keys=[],
        users=[],
    )
    there = make_allocation(migrating.candidate.workload, held, uid, now).envelope
    there.owner, there.finalizers = item.envelope.ref, []
    engine.snapshot.put_allocation(there.key, node.uid, candidate.request.amounts, load)
    message = f"capacity is reserved on {node.envelope.name}"
    placed = _put_condition(item, Condition("Placed", "True", "ReservationHeld", message, now))
    writes = [put(there), put_decision(view, item, candidate, explanation, timing)]
    commit = Commit(
        item.key,
        [*writes, *([placed] if placed is not None else [])],
        [*_unchanged(item, migrating, node), Absent(there.key)],
    )
    return commit, [there.key]


def _find_holder(view: View, item: Item) -> Item | None:
    """Another Migration of its workload that has a reservation."""
    others = (one for one in view.find(MIGRATIONS_BY_WORKLOAD, workload_key(item)) if one.uid != item.uid)
    return next((one for one in others if find_reservation(view, one) is not None), None)


def _describe_saving(view: View, migrating: MigrationCandidate, item: Item, node: Item) -> str:
    choice = migrating.carried or has_choice(migrating.source.spec(AllocationSpec))
    return f": {describe_way(view, migrating, item.spec(MigrationSpec), node)[1]}" if choice else ""


def _read(
    view: View, item: Item, strategy: str, silent: list[str], *, later: bool
) -> MigrationCandidate | Waiting | None:
    """None if there is nothing to migrate: its controller ends it."""
    spec = item.spec(MigrationSpec)
    workload = view.get(workload_key(item))
    if workload is None or workload.deleting:
        return None
    return read_migration_candidate(view, workload, spec, strategy, silent, later=later)


def _plan_waiting(item: Item, why: Waiting | None, now: float) -> Commit | None:
    return _plan_condition(item, Condition("Placed", "False", why.reason, why.message, now)) if why else None


def _load(engine: Engine, migrating: MigrationCandidate, candidate: Candidate, row: int, held: Sequence[Item]) -> Load:
    with engine.snapshot.trial() as trial:
        trial.drop(*(item.key for item in held))
        load = engine.load(candidate.request, row)
    ref = migrating.candidate.workload.envelope.ref
    return msgspec.structs.replace(load, workload=name_workload(ref)) if candidate.request.groups else load


def _unchanged(item: Item, migrating: MigrationCandidate, node: Item) -> list[Precondition]:
    """The objects that the decision depends on."""
    candidate = migrating.candidate
    return [unchanged(one) for one in (item, candidate.workload, migrating.source, node, *candidate.volume_items)]


def _decide_again(
    engine: Engine, migrating: MigrationCandidate, reservation: Item
) -> tuple[Candidate, int, Explanation] | None:
    """The node of the reservation, if it still takes the workload."""
    request = msgspec.structs.replace(migrating.candidate.request, node=reservation.spec(AllocationSpec).node)
    there = msgspec.structs.replace(migrating, candidate=msgspec.structs.replace(migrating.candidate, request=request))
    if migrating.candidate.request.node not in (None, request.node):
        return None
    candidate, row, explanation = decide(engine, there, [reservation])
    return (candidate, row, explanation) if row is not None else None


def _make_specs(
    view: View, item: Item, migrating: MigrationCandidate, node: Item, uid: str, load: Load
) -> tuple[AllocationSpec, AllocationSpec]:
    """The specs of source and target: the target is a copy of the source, one incarnation later."""
    spec, now = item.spec(MigrationSpec), migrating.source.spec(AllocationSpec)
    report = migrating.source.report(AllocationReport)
    rests = now.desired == "run" and report.state == "stopped" and report.ended
    there = node.report(NodeReport)
    to_source = AllocatedMigration(
        key=migration_key(item.uid, item.status(MigrationStatus).tries),
        mode="cold" if stands_still(spec) else "live",
        saves=describe_way(view, migrating, spec, node)[0],
        peer=now.node,
        peer_uid=now.node_uid,
        peer_allocation=migrating.source.uid,
        bytes_per_second=spec.bytes_per_second,
        pause_ms=spec.pause_ms,
        image=report.image,
        rests=report.reason if rests else "",
        shared=tuple(disk for disk, (pool, id_) in list_disks(now).items() if id_ and pool_id(there, pool) == id_),
    )
    to_target = msgspec.structs.replace(
        to_source,
        peer=node.envelope.name,
        peer_uid=node.uid,
        peer_allocation=uid,
        lesson=read_lesson(view, migrating.candidate.workload.key, now.node, node.envelope.name),
    )
    target = msgspec.structs.replace(
        now,
        node=node.envelope.name,
        node_uid=node.uid,
        incarnation=max(migrating.candidate.incarnation, now.incarnation + 1),
        role="target",
        desired="run",
        gpus=read_gpus(node, load),
        cpu_model=now.cpu_model
        if migrating.carried or not stands_still(spec)
        else choose_cpu(node, now.requested_cpu_model),
        waits_for=None,
        held_by=None,
        migration=to_source,
        volumes=locate_volumes(now.volumes, there),
        pool_id=pool_id(there, now.pool),
        snapshots=[],
        origin=None,  # its disks come from the source
    )
    return msgspec.structs.replace(now, role="source", migration=to_target), target


def _find_want(view: View, item: Item) -> Want | None:
    spec = item.spec(MigrationSpec)
    if spec.cluster is not None:
        return None  # that cluster finds the target
    if _wants_target(item):
        return "target"
    planned = item.status(MigrationStatus).phase == "Planned" and not _is_ended_early(item)
    return "reservation" if planned and spec.mode != "storage" and find_reservation(view, item) is None else None


def _wants_target(item: Item) -> bool:
    status, placed = item.status(MigrationStatus), item.envelope.condition("Placed")
    at_all = item.spec(MigrationSpec).mode != "storage"  # which needs no target
    begun = status.phase == "Pending" and status.started_at is not None and at_all
    return begun and not _is_ended_early(item) and not _is_placed(placed, status)


def _is_ended_early(item: Item) -> bool:
    return item.deleting or item.actions(MigrationActions).cancel


def _is_placed(placed: Condition | None, status: MigrationStatus) -> bool:
    """Whether this try has its target already, which its status may not show yet."""
    return placed is not None and placed.status == "True" and placed.generation == status.tries


def _plan_refusal(
    view: View, engine: Engine, item: Item, migrating: MigrationCandidate, explanation: Explanation, timing: Timing
) -> Commit | None:
    message = describe_refusal(engine, migrating, explanation, item.spec(MigrationSpec).to)
    refused = _put_condition(item, Condition("Placed", "False", explanation.error, message, timing.at))
    if refused is None:
        return None
    event = Event("Warning", explanation.error, message, item.envelope.ref, SOURCE)
    return Commit(
        item.key,
        [put_decision(view, item, migrating.candidate, explanation, timing), refused],
        [unchanged(item)],
        [event],
    )


def _plan_condition(item: Item, condition: Condition) -> Commit | None:
    write = _put_condition(item, condition)
    return Commit(item.key, [write], [unchanged(item)]) if write is not None else None


def _put_condition(item: Item, condition: Condition) -> Write | None:
    """The Migration with ``condition``, whose generation is the number of the try; None if nothing changes."""
    envelope = edit(item)
    tries = item.status(MigrationStatus).tries
    return put(envelope) if set_condition(envelope, msgspec.structs.replace(condition, generation=tries)) else None
