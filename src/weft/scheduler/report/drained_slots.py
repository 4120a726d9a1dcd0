"""Places where workloads in slots of reservations on a drained node begin instead, if they have not begun. A slot goes to another
node with all that is in it, unless something of that has begun; else a workload may get capacity of another slot. Pure but for the
snapshot."""

from __future__ import annotations

from msgspec.structs import replace

from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_SLOT, AllocationReport, AllocationSpec, slot_key
from weft.kinds.report import Leaving
from weft.objects.identity import object_key
from weft.objects.quantity import format_time
from weft.scheduler.allocation.lease import Conflict
from weft.scheduler.allocation.promise import begins_later
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.reservation.placing import describe_bar, find_within, without_slot
from weft.scheduler.reservation.plan import find_slot_elsewhere
from weft.scheduler.table.trial import Trial
from weft.scheduler.workload.request import Candidate, Waiting, read_candidate


class Slots:
    """The slots of one node, each asked for once; what they and their workloads take elsewhere is counted in ``trial``."""

    def __init__(self, view: View, engine: Engine, trial: Trial, now: float) -> None:
        self._view, self._engine, self._trial, self._now = view, engine, trial, now
        self._found: dict[
            str, tuple[int, float] | str
        ] = {}  # by slot: row and start of its next place, or why it has none

    def find_start(self, place: Item, workload: Item, answer: Leaving, strategy: str) -> Leaving:
        """``answer`` with the node where the workload would begin instead, or why there is none."""
        spec = place.spec(AllocationSpec)
        candidate = read_candidate(self._view, workload, strategy, [])
        if isinstance(candidate, Waiting):
            return replace(answer, reason=candidate.reason, message=candidate.message)
        candidate = replace(candidate, request=replace(candidate.request, leaves=spec.node))
        key = slot_key(spec)
        found = self._found[key] = self._found.get(key) or self._find(key)
        if not isinstance(found, str):
            return self._follow(candidate, found, answer)
        within = find_within(self._view, self._engine, candidate, self._now)
        if isinstance(within, Waiting):
            return replace(answer, reason=within.reason, message=f"{found}; {within.message}")
        name = self._engine.snapshot.names[within.row]
        uid = self._engine.snapshot.uids[within.row]
        self._trial.put_slotted(f"rehearsed/{place.key}", uid, within.slot, candidate.request.amounts, within.load)
        message = f"begins there at {format_time(within.lease.start)}, in another slot of its reservation"
        return replace(answer, to=name, mode="later", message=message)

    def _follow(self, candidate: Candidate, place: tuple[int, float], answer: Leaving) -> Leaving:
        """Answer for a workload whose slot has another place."""
        (row, start), base = place, without_slot(candidate.request)
        if not self._engine.fits(base)[row]:
            bar = describe_bar(self._engine, base, row)
            return replace(answer, reason="inReservation", message=f"its slot would be on another node, {bar}")
        message = f"begins there at {format_time(start)}, with its slot"
        return replace(answer, to=self._engine.snapshot.names[row], mode="later", message=message)

    def _find(self, key: str) -> tuple[int, float] | str:
        slot = self._view.get(key)
        of = slot.spec(AllocationSpec).workload if slot is not None else None
        item = self._view.get(object_key(of.kind, of.project, of.name)) if of is not None else None
        if slot is None or item is None:
            return "its slot is gone"
        users = self._view.find(ALLOCATIONS_BY_SLOT, slot.envelope.name)
        if any(not user.deleting and not self._begins_later(user) for user in users):
            return "its slot stays, since another workload in it has begun"
        found = find_slot_elsewhere(self._view, self._engine, self._trial, item, slot, self._now)
        return f"its slot can't leave: {found.message}" if isinstance(found, Conflict) else found

    def _begins_later(self, user: Item) -> bool:
        lease = user.spec(AllocationSpec).lease
        return lease is not None and begins_later(lease, user.report(AllocationReport), self._now)
