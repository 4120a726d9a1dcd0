"""Places for a gang in slots of a reservation: all of its members get what they request, or none gets a place. Pure: trials in the
snapshot are removed again.

The members are tried large ones first, each in the slot with the least left that takes it; where one finds none, others before it
are tried elsewhere. Not every combination is tried where there are many.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.informer.view import View
from weft.informer.workloads import name_of, spec_of
from weft.kinds.fields.gang import read_gang
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.gang.assembly import INCOMPLETE
from weft.scheduler.reservation.placing import Within, list_within
from weft.scheduler.table.facts import name_workload
from weft.scheduler.table.trial import Trial
from weft.scheduler.workload.request import Candidate, Waiting

TURNS = 400  # slots tried
_TRIAL = "gang/"  # begins the names of trial allocations: no key of an object begins so


class Places:
    """The search for one gang; ``find`` answers."""

    def __init__(self, view: View, engine: Engine, members: Sequence[Candidate], now: float) -> None:
        self._view = view
        self._engine = engine
        self._members = members
        self._now = now
        self._found: dict[int, Within] = {}
        self._most = 0  # members that had slots at the same time
        self._lack: tuple[int, Waiting] | None = None  # who lacked one then, and why
        self._turns = TURNS

    def find(self) -> dict[int, Within] | Waiting:
        """The places by member, in the order in which they must be counted; or what all of them wait for."""
        specs, snapshot = [spec_of(each.workload) for each in self._members], self._engine.snapshot
        name = read_gang(specs[0].gang or "")[0]
        for each, spec in zip(self._members, specs, strict=True):
            if spec.reservation is None:
                why = f"{name_of(each.workload)} has no reservation, and others have one"
                return Waiting(INCOMPLETE, f"gang {name}: {why}; give one to all of its members, or to none")
        snapshot.settle()
        amounts = [each.request.amounts for each in self._members]
        order = sorted(range(len(amounts)), key=lambda i: (amounts[i][:2], -i), reverse=True)
        with snapshot.trial() as trial:
            if self._place(order, trial):
                return dict(self._found)
        assert self._lack is not None
        lacking, waiting = self._lack
        what = f"gang {name}: {name_of(self._members[lacking].workload)} has no slot"
        beside = f" when {self._most} of {len(specs)} members have theirs" if self._most else ""
        return Waiting(waiting.reason, f"{what}{beside}: {waiting.message}")

    def _place(self, order: list[int], trial: Trial) -> bool:
        """Give these members places beside those that have one, depth first."""
        if not order:
            return True
        member, *rest = order
        candidate, snapshot = self._members[member], self._engine.snapshot
        places = list_within(self._view, self._engine, candidate, self._now)
        if isinstance(places, Waiting):
            if self._lack is None or len(self._found) > self._most:
                self._most, self._lack = len(self._found), (member, places)
            return False
        alike = set[object]()
        for place in places:
            left = snapshot.slots.free(place.slot)
            same = (place.row, left.cpu, left.memory, place.load.gpus)
            if self._turns <= 0 or same in alike:  # what a slot like it led to
                continue
            alike.add(same)
            self._turns -= 1
            load = place.load
            if load.groups:
                load = msgspec.structs.replace(load, workload=name_workload(candidate.workload.envelope.ref))
            uid = snapshot.uids[place.row]
            trial.put_slotted(f"{_TRIAL}{member}", uid, place.slot, candidate.request.amounts, load)
            self._found[member] = place
            if self._place(rest, trial):
                return True
            del self._found[member]
            trial.revert(f"{_TRIAL}{member}")
        return False
