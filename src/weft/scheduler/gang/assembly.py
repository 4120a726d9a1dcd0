"""Gang assembly: which members of a gang exist and can be placed, read from the workloads that name it. Pure.

A gang is placed when it has as many members as it counts; members that have a place already count. Of more members the first
are placed together, and each of the others by itself after them.
"""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.informer.workloads import gang_of, name_of, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD
from weft.kinds.fields.gang import read_gang
from weft.kinds.parts.workload import WORKLOADS_BY_GANG
from weft.scheduler.workload.request import Candidate, Waiting, read_candidate, wants_place

INCOMPLETE = "gangIncomplete"


def assemble_gang(view: View, workload: Item, default_strategy: str, silent: list[str]) -> list[Candidate] | Waiting:
    """The members that must be placed together with ``workload``, itself included; or what it waits for."""
    name = read_gang(spec_of(workload).gang or "")[0]
    there = [item for item in view.find(WORKLOADS_BY_GANG, gang_of(workload)) if not item.deleting]
    there.sort(key=lambda item: (item.envelope.created_at, item.envelope.name))
    count = max(read_gang(spec_of(item).gang or "")[1] for item in there)
    placed = sum(1 for item in there if view.count(ALLOCATIONS_BY_WORKLOAD, item.uid))
    ready = [item for item in there if wants_place(view, item)]
    if placed + len(ready) < count:
        return Waiting(INCOMPLETE, f"gang {name}: {placed + len(ready)} of {count} members are ready to be placed")
    together = ready[: count - placed] if placed < count else [workload]
    if workload.uid not in {item.uid for item in together}:
        return Waiting(INCOMPLETE, f"gang {name}: its first {count} members are placed before this one")
    candidates: list[Candidate] = []
    owners: dict[str, str] = {}
    for item in together:
        candidate = read_candidate(view, item, default_strategy, silent)
        if isinstance(candidate, Waiting):
            if item.uid == workload.uid:
                return candidate
            return Waiting(INCOMPLETE, f"gang {name}: {name_of(item)} waits: {candidate.message}")
        for volume in candidate.volumes:
            owner = owners.setdefault(volume.uid, name_of(item))
            if owner != name_of(item):
                return Waiting("volumeInUse", f"volume {volume.name} is also used by {owner} of the same gang")
        candidates.append(candidate)
    return candidates
