"""Gives a Reservation its slots, and takes them back at its end.

A slot is an allocation of role ``reserved`` with the reservation's lease: the calendar counts it as it counts any lease, and no
node does anything for it. All slots are made in one commit, or none. One that is lost with its node is made again where there is
capacity; one on a node that is lost or takes nothing more is made elsewhere, unless something in it has begun. At the end a slot
goes once no workload has anything of it any more. Pure but for the snapshot, which counts new slots at once.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.contracts.policy import Request
from weft.contracts.store import Absent, Precondition, Write
from weft.informer.commit import Commit, delete, edit, let_go, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import (
    ALLOCATIONS_BY_SLOT,
    SLOTS_BY_RESERVATION,
    AllocationReport,
    AllocationSpec,
    Resources,
    account_within,
    allocation_name,
    is_slot,
)
from weft.kinds.fields.lease import LEASE_CONFLICT, AllocatedLease, LeaseRequest
from weft.kinds.fields.strategy import DEFAULT_STRATEGY
from weft.kinds.node import NODES_BY_UID, NodeStatus
from weft.kinds.parts.placement_spec import PlacementSpec
from weft.kinds.reservation import OVER, ReservationSpec, ReservationStatus, find_wanted_end
from weft.objects.envelope import Condition, merge_part, set_condition
from weft.objects.identity import new_uid, object_key
from weft.objects.quantity import format_time
from weft.scheduler.allocation.bind import SOURCE, make_allocation, read_gpus
from weft.scheduler.allocation.count import read_slot
from weft.scheduler.allocation.lease import (
    Conflict,
    find_slot,
    find_start_of_all,
)
from weft.scheduler.allocation.promise import find_node_obstacle, find_trouble
from weft.scheduler.constraint.expressions import Expressions, read_expressions
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.reservation.extend import extend_slots
from weft.scheduler.reservation.refusal import describe_refusal
from weft.scheduler.table.facts import Load
from weft.scheduler.table.snapshot import amounts_of
from weft.scheduler.table.trial import Trial
from weft.scheduler.workload.request import read_gpus as read_gpu_ask

READY_SECONDS = 1.0  # until it is seen again whether nodes are ready
AGAIN_SECONDS = 30.0  # until slots that were lost are tried again; the clock may be set meanwhile


class NewSlot(msgspec.Struct, frozen=True):
    uid: str  # of its allocation
    row: int
    lease: AllocatedLease
    load: Load


class Reservations:
    """The Reservations that have something to do: ``notice`` every change, ``plan`` when ``wait`` says so."""

    def __init__(self) -> None:
        self.assumed: list[str] = []  # keys of slots in commits whose outcome isn't known
        self._due: set[str] = set()
        self._at: dict[str, float] = {}  # when something is due by itself, in seconds since 1970
        self._keys: dict[str, str] = {}  # by uid

    def notice(self, change: Changed) -> str:
        """Note a change of a Reservation. Returns its key if workloads that wait for it may have a place now."""
        self._due.add(change.key)
        if change.new is None:
            self._at.pop(change.key, None)
            self._keys.pop(change.item.uid, None)
        else:
            self._keys[change.new.uid] = change.key
        return change.key if has_changed(change, lambda item: (item.uid, item.envelope.condition("Placed"))) else ""

    def notice_allocation(self, change: Changed, uid: str) -> str:
        """Note a change of a slot of the Reservation ``uid``, or of an allocation in one. Returns as ``notice``."""
        key = self._keys.get(uid, "")
        if not key or not has_changed(change, _read_taken):
            return ""
        self._due.add(key)
        return key

    def retry(self, key: str) -> None:
        self._due.add(key)

    def retry_by_uid(self, uid: str) -> None:
        self._due.update(key for key in (self._keys.get(uid),) if key)

    def wait(self, now: float) -> float | None:
        """Seconds until the next plan; None: there is nothing to plan."""
        if self._due:
            return 0.0
        return min(max(0.0, min(self._at.values()) - now), AGAIN_SECONDS) if self._at else None

    def plan(self, view: View, engine: Engine, silent: list[str], now: float) -> list[Commit]:
        """Plan what is due by ``now``; nothing is promised while nodes are ``silent`` after a restore."""
        keys = sorted(self._due | {key for key, at in self._at.items() if at <= now})
        self._due.clear()
        commits = []
        for key in keys:
            item = view.get(key)
            if item is None:
                continue
            commit, slots, self._at[key] = plan_reservation(view, engine, item, silent, now)
            if self._at[key] == math.inf:
                del self._at[key]
            self.assumed += slots
            commits += [commit] if commit is not None else []
        return commits


def _read_taken(allocation: Item) -> object:
    spec = allocation.spec(AllocationSpec)
    return allocation.uid, is_slot(spec), account_within(spec, allocation.report(AllocationReport))


def plan_reservation(
    view: View, engine: Engine, item: Item, silent: list[str], now: float
) -> tuple[Commit | None, list[str], float]:
    """The commit, the keys of new slots, and when to plan again by itself (seconds since 1970)."""
    spec, status = item.spec(ReservationSpec), item.status(ReservationStatus)
    slots = view.find(SLOTS_BY_RESERVATION, item.uid)
    start = status.start if status.start is not None else max(now, spec.start or now)
    end = status.end if status.end is not None else find_wanted_end(spec, start)
    new, message, longer = list[NewSlot](), status.message, list[Item]()
    gone = list[Item]()
    if item.deleting or status.state in OVER or now >= end:
        gone = [slot for slot in slots if not engine.snapshot.slots.is_used(slot.key)]
        left = [slot for slot in slots if slot not in gone]
        status = msgspec.structs.replace(status, state=status.state if status.state in OVER else "Done")
        if item.deleting and not left:
            return _close(item, gone), [], math.inf
    else:
        left, lost = slots, spec.count - len(slots)
        waits = bool(lost) and (bool(silent) or not _is_ready(engine, spec.node))
        if waits and status.start is None:
            return None, [], now + READY_SECONDS
        found = (
            Conflict("no node is ready")
            if waits
            else place_slots(view, engine, item, (max(now, start), end), lost, now)
        )
        if isinstance(found, Conflict):
            message = found.message
            if status.start is None:
                status = msgspec.structs.replace(status, state="Rejected")
            else:
                message = f"{lost} of {spec.count} slots were lost: {message}"
        else:
            new, message = found, ""
            if not waits:
                replanned, message = replan_slots(view, engine, item, (max(now, start), end), now)
                new, gone = [*new, *replanned.values()], [slot for slot in slots if slot.key in replanned]
                left = [slot for slot in slots if slot.key not in replanned]
                if status.end is not None and not (new or message) and (wanted := find_wanted_end(spec, start)) > end:
                    longer, message = extend_slots(engine, spec, slots, (start, end, wanted), now)
                    end = wanted if longer else end
        if status.state != "Rejected":
            state = "Active" if now >= start else "Scheduled"
            status = msgspec.structs.replace(status, state=state, start=start, end=end)
    status = msgspec.structs.replace(status, message=message)
    commit = _write(view, engine, item, status, left, gone, new, longer, now)
    again = [at for at in (start, end) if at > now] if status.state not in OVER else []
    again += [now + AGAIN_SECONDS] if (status.state not in OVER and message) or (status.state in OVER and left) else []
    return (
        commit,
        [*(_key_of(engine, one) for one in new), *(slot.key for slot in longer)],
        min(again, default=math.inf),
    )


def replan_slots(
    view: View, engine: Engine, item: Item, span: tuple[float, float], now: float
) -> tuple[dict[str, NewSlot], str]:
    """Others for slots on nodes that are lost or take nothing more, by the keys of these; and why not for all of them."""
    replanned: dict[str, NewSlot] = {}
    spec, slots = item.spec(ReservationSpec), view.find(SLOTS_BY_RESERVATION, item.uid)
    broken = [(slot, why) for slot in slots if (why := find_slot_trouble(view, slot, now))]
    for slot, why in broken:
        found = place_slots(view, engine, item, span, 1, now)
        if isinstance(found, Conflict):
            return replanned, f"{len(broken) - len(replanned)} of {spec.count} slots: {why}; {found.message}"
        replanned[slot.key] = found[0]
    return replanned, ""


def find_slot_trouble(view: View, slot: Item, now: float) -> str:
    """Why a slot should be on another node: ``n1 is lost``; empty if it is good where it is, or something in it has begun there."""
    node = next(iter(view.find(NODES_BY_UID, slot.spec(AllocationSpec).node_uid)), None)
    if node is None:
        return ""
    if node.status(NodeStatus).phase == "Autonomous":
        return ""  # nothing of it is planned elsewhere
    lost = node.status(NodeStatus).phase == "NotReady"
    lease = slot.spec(AllocationSpec).lease
    why = (
        f"{node.envelope.name} is lost"
        if lost
        else find_node_obstacle(node, lease.prepare_at if lease is not None else now)
    )
    users = view.find(ALLOCATIONS_BY_SLOT, slot.envelope.name) if why else ()
    return why if all(user.deleting or find_trouble(view, user, now) for user in users) else ""


def find_slot_elsewhere(
    view: View, engine: Engine, trial: Trial, item: Item, slot: Item, now: float
) -> tuple[int, float] | Conflict:
    """Row and start of another place for a slot whose node takes nothing more, counted in ``trial``; or why there is none."""
    spec, status, request = slot.spec(AllocationSpec), item.status(ReservationStatus), _read_request(view, item)
    if isinstance(request, str) or status.start is None or status.end is None:
        return Conflict(request if isinstance(request, str) else "it has no time yet")
    request = msgspec.structs.replace(request, leaves=spec.node)
    found = _try(engine, trial, item, request, (max(now, status.start), status.end), 1, now)
    return found[1] if isinstance(found, tuple) else (found[0].row, found[0].lease.start)


def _is_ready(engine: Engine, node: str | None) -> bool:
    """Whether any node that slots may be on is there to be asked."""
    snapshot = engine.snapshot
    snapshot.settle()
    return any(online and node in (None, name) for name, online in zip(snapshot.names, snapshot.online, strict=True))


def place_slots(
    view: View, engine: Engine, item: Item, span: tuple[float, float], count: int, now: float
) -> list[NewSlot] | Conflict:
    """So many slots from start to end (``span``), counted in the snapshot; or why they don't fit, with none counted."""
    if count <= 0:
        return []
    request = _read_request(view, item)
    if isinstance(request, str):
        return Conflict(request)
    with engine.snapshot.trial() as trial:
        found = _try(engine, trial, item, request, span, count, now)
        if not isinstance(found, tuple):
            trial.keep()
            return found
    fitting, conflict = found
    spec, seconds = item.spec(ReservationSpec), span[1] - span[0]
    asked = LeaseRequest(mode="reservation", start=span[0], duration=seconds)
    later = find_start_of_all(engine, request, asked, spec.grace, now, count)
    if later < math.inf:  # the times know nothing of GPUs
        with engine.snapshot.trial() as trial:
            if isinstance(_try(engine, trial, item, request, (later, later + seconds), count, now), tuple):
                later = math.inf
    return Conflict(describe_refusal(engine, spec, request, count, fitting, conflict, span, later), later)


def _try(
    engine: Engine,
    trial: Trial,
    item: Item,
    request: Request,
    span: tuple[float, float],
    count: int,
    now: float,
) -> list[NewSlot] | tuple[int, Conflict]:
    """The slots; or how many of them fit, and why no more."""
    spec, snapshot = item.spec(ReservationSpec), engine.snapshot
    asked = LeaseRequest(mode="reservation", start=span[0], duration=span[1] - span[0])
    new: list[NewSlot] = []
    base = msgspec.structs.replace(request, amounts=(0, 0, 0))
    while len(new) < count:
        found = find_slot(engine, request, item.uid, asked, spec.grace, now)
        if isinstance(found, Conflict):
            return len(new), found
        one = NewSlot(new_uid(), found.row, found.lease, engine.load(base, found.row))
        assert one.lease.end is not None
        held = CalendarEntry(
            snapshot.uids[one.row], one.lease.prepare_at, one.lease.end + spec.grace, request.amounts[:2]
        )
        trial.put_leased(_key_of(engine, one), held, 0, one.load)
        new.append(one)
    return new


def _key_of(engine: Engine, slot: NewSlot) -> str:
    return object_key("allocation", None, allocation_name(engine.snapshot.uids[slot.row], slot.uid))


def _read_request(view: View, item: Item) -> Request | str:
    """Request of each slot to its node, or why that can't be known."""
    spec = item.spec(ReservationSpec)
    placement = PlacementSpec(
        constraint=spec.constraint, gpus=spec.gpus, gpu_memory=spec.gpu_memory, gpu_models=spec.gpu_models
    )
    expressions = read_expressions(view, item.envelope.project, placement)
    if not isinstance(expressions, Expressions):
        return expressions[1]
    return Request(
        amounts=amounts_of(Resources(cpu=spec.cpu, memory=spec.memory)),
        machine="",
        strategy=DEFAULT_STRATEGY,
        node=spec.node,
        gpus=read_gpu_ask(placement),
        constraint=expressions.constraint,
        tolerations=tuple(sorted(spec.tolerate)),
    )


def _write(
    view: View,
    engine: Engine,
    item: Item,
    status: ReservationStatus,
    left: list[Item],
    gone: list[Item],
    new: list[NewSlot],
    longer: list[Item],
    now: float,
) -> Commit | None:
    """Status, condition and slots in one commit; None if nothing changes. ``longer``: slots of ``left``, with their later end."""
    spec, former, book = item.spec(ReservationSpec), item.status(ReservationStatus), engine.snapshot.slots
    nodes = {one.row: view.find(NODES_BY_UID, engine.snapshot.uids[one.row])[0] for one in new}
    made = [_make_slot(item, spec, one, nodes[one.row], now) for one in new]
    for slot in made:
        placed = slot.spec(AllocationSpec)
        assert placed.lease is not None
        book.put(slot.key, read_slot(placed, placed.lease))
    status = msgspec.structs.replace(status, **_count(engine, spec, [*left, *made], status.state))
    envelope, refused = edit(item), bool(status.message)
    where = ", ".join(f"{count} on {node}" for node, count in sorted(status.slots.items()))
    condition = Condition("Placed", "True", "Placed", where, now, item.envelope.generation)
    if refused:  # its slots may all be there, and only an extension of them be refused
        whole: Literal["True", "False"] = "True" if sum(status.slots.values()) == spec.count else "False"
        condition = Condition("Placed", whole, LEASE_CONFLICT, status.message, now, item.envelope.generation)
    changed = status.state not in ("Done", "Requested") and set_condition(envelope, condition)
    if not changed and status == former and not gone:
        return None
    envelope.status = merge_part(envelope.status, status)
    writes: list[Write] = [put(envelope), *(put(slot.envelope) for slot in (*made, *longer))]
    writes += [delete(slot) for slot in gone]
    preconditions: list[Precondition] = [unchanged(one) for one in (item, *nodes.values(), *gone)]
    preconditions += [unchanged(slot) for slot in left if longer]
    preconditions += [Absent(slot.key) for slot in made]
    events = []
    if status.state != former.state or (changed and refused):
        text = status.message or f"from {format_time(status.start or now)} to {format_time(status.end or now)}"
        reason = LEASE_CONFLICT if refused else status.state
        events = [Event("Warning" if refused else "Normal", reason, text, item.envelope.ref, SOURCE)]
    if longer:
        text = f"it ends at {format_time(status.end or now)}"
        events.append(Event("Normal", "LeaseExtended", text, item.envelope.ref, SOURCE))
    if gone and new:
        text = f"{len(gone)} of {spec.count} slots are elsewhere now: {where}"
        events.append(Event("Warning", "SlotsReplanned", text, item.envelope.ref, SOURCE))
    return Commit(item.key, writes, preconditions, events)


def _close(item: Item, gone: list[Item]) -> Commit:
    """Remove a Reservation with the slots that it has."""
    writes = [*(delete(slot) for slot in gone), let_go(item, "reservation")]
    return Commit(item.key, writes, [unchanged(one) for one in (item, *gone)])


def _make_slot(item: Item, spec: ReservationSpec, slot: NewSlot, node: Item, now: float) -> Item:
    made = make_allocation(
        item,
        AllocationSpec(
            node=node.envelope.name,
            node_uid=node.uid,
            workload=item.envelope.ref,
            workload_generation=item.envelope.generation,
            incarnation=0,
            role="reserved",
            resources=Resources(cpu=spec.cpu, memory=spec.memory),
            gpus=read_gpus(node, slot.load),
            grace_seconds=spec.grace,
            lease=slot.lease,
        ),
        slot.uid,
        now,
    )
    made.envelope.finalizers = []  # no node has anything of it
    return made


def _count(engine: Engine, spec: ReservationSpec, slots: list[Item], state: str) -> dict[str, object]:
    """The parts of the status that follow from its slots."""
    by_node: dict[str, int] = {}
    cpu = memory = gpus = 0
    for slot in slots:
        node, free = slot.spec(AllocationSpec).node, engine.snapshot.slots.free(slot.key)
        by_node[node] = by_node.get(node, 0) + 1
        cpu, memory, gpus = cpu + free.cpu, memory + free.memory, gpus + sum(free.gpus.values())
    if state in OVER:
        return {"slots": by_node, "used": {}, "free": {}}
    count = len(slots)
    free_amounts = {"cpu": cpu / 1000, "memory": memory, "gpus": gpus / 1000}
    whole = {"cpu": spec.cpu * count, "memory": spec.memory * count, "gpus": float(spec.gpus * count)}
    used = {name: round(whole[name] - free_amounts[name], 3) for name in whole}
    return {"slots": by_node, "used": used, "free": free_amounts}
