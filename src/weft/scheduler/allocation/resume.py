"""When a workload that was suspended for another resumes: once its node has the capacity for the rest of its lease. Pure but for
the snapshot, which counts it at once.

It resumes where it is, as its saved memory is there; ``scheduler.migration.elsewhere`` is for one whose node stays full.
"""

from __future__ import annotations

import msgspec

from weft.contracts.journal import Event
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Item
from weft.kinds.allocation import AllocationSpec
from weft.kinds.fields.lease import LeaseRequest, end_suspension
from weft.objects.envelope import merge_part
from weft.objects.quantity import format_duration
from weft.scheduler.allocation.count import count_allocation
from weft.scheduler.allocation.lease import Opening, find_slot
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.table.facts import amounts_on
from weft.scheduler.workload.request import Candidate

SOURCE = "scheduler"


def plan_resume(engine: Engine, candidate: Candidate, allocation: Item, now: float) -> Commit | None:
    """Give it its cores and memory back; None as long as its node lacks them. The time until now doesn't count in its duration."""
    place = allocation.spec(AllocationSpec)
    lease, snapshot = place.lease, engine.snapshot
    if lease is None or lease.suspension is None:
        return None
    request = msgspec.structs.replace(
        candidate.request,
        amounts=amounts_on(place, place.resources),
        asks=(),
        node=place.node,
        mode="long-lived",
        gang="",
    )
    waited = max(0.0, now - lease.suspension.at)
    with snapshot.trial() as trial:
        trial.drop(allocation.key)
        if lease.end is None:
            fits = engine.may_fit(request, [place.node_uid])
        else:
            rest = LeaseRequest(mode="best-effort", duration=max(0.0, lease.end + waited - now))
            found = find_slot(engine, request, candidate.workload.uid, rest, place.grace_seconds, now)
            fits = isinstance(found, Opening)
    if not fits:
        return None
    changed = edit(allocation)
    spec = msgspec.structs.replace(place, lease=end_suspension(lease, now))
    changed.spec = merge_part(changed.spec, spec)
    changed.generation += 1
    count_allocation(snapshot, allocation.key, Item(changed, spec=spec), now)
    event = Event(
        "Normal",
        "Resumed",
        f"on {place.node}, after {format_duration(waited)} in which {lease.suspension.winner} had its capacity",
        candidate.workload.envelope.ref,
        SOURCE,
    )
    return Commit(candidate.workload.key, [put(changed)], [unchanged(allocation)], [event])
