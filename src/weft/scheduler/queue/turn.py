"""Order of those that wait for a place. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from weft.informer.view import Item, View
from weft.informer.workloads import gang_of, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, LOST_BY_WORKLOAD, AllocationSpec, AllocationStatus
from weft.kinds.fields.lease import MOST_PRIORITY, PATIENCE_SECONDS
from weft.kinds.parts.workload import WorkloadSpec

PATIENT = math.inf  # the level of those that have waited so long that they come before all others
AT_ONCE = MOST_PRIORITY + 1.0  # of those that don't wait: they get a place now, or are refused


class QueuePosition(NamedTuple):
    """When a workload is decided on: the highest ``level`` first; of one level it counts how much its ``project`` has, then since
    when it waits (seconds since 1970). ``project`` is "" at levels where shares don't count."""

    level: float
    project: str
    since: float


FIRST = QueuePosition(0.0, "", 0.0)


def is_queued(spec: WorkloadSpec) -> bool:
    """Whether it waits in the queue of leases: a best-effort one that ends."""
    lease = spec.lease
    return lease is not None and lease.mode == "best-effort" and lease.duration is not None and not spec.reservation


def name_lease(workload: Item) -> str:
    """The id of the lease that it waits with in that queue: its key, or its gang."""
    return gang_of(workload) or workload.key


def is_suspended(allocation: Item) -> bool:
    """Whether its capacity was given to another workload, now or from a later time on. One that migrates resumes at its target."""
    spec, lease = allocation.spec(AllocationSpec), allocation.spec(AllocationSpec).lease
    away = spec.role != "active" or allocation.deleting
    return lease is not None and lease.suspension is not None and not lease.cancelled and not away


def waits_since(view: View, workload: Item) -> float:
    """Time since which it waits for capacity (seconds since 1970): since it was suspended, or lost with its node, or made."""
    leases = [one.spec(AllocationSpec).lease for one in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)]
    suspended = [lease.suspension.at for lease in leases if lease is not None and lease.suspension is not None]
    ends = [one.status(AllocationStatus).ended_by for one in view.find(LOST_BY_WORKLOAD, workload.uid)]
    lost = max((end.at for end in ends if end is not None), default=workload.envelope.created_at)
    return min(suspended, default=lost)


def is_patient(since: float, now: float) -> bool:
    """Whether it has waited so long that it comes before all others."""
    return now - since >= PATIENCE_SECONDS


def find_turn(view: View, workload: Item, now: float) -> QueuePosition:
    """Turn at the level of its priority, if it is best-effort. What has a place immediately or never, and what has waited long,
    comes before."""
    lease = spec_of(workload).lease
    has_place = not all(map(is_suspended, view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)))
    if has_place or (lease is not None and lease.mode != "best-effort"):
        return QueuePosition(AT_ONCE, "", workload.envelope.created_at)
    since = waits_since(view, workload)
    if is_patient(since, now):
        return QueuePosition(PATIENT, "", since)
    return QueuePosition(lease.priority if lease is not None else 0.0, workload.envelope.project or "", since)


def mix(waiting: Iterable[tuple[QueuePosition, str]], most: int) -> list[str]:
    """The first ``most`` keys: by level, and of each project equally many."""
    counts: Counter[tuple[float, str]] = Counter()
    ranked = []
    for turn, key in sorted(waiting, key=lambda one: one[0].since):
        counts[turn[:2]] += 1
        ranked.append((-turn.level, counts[turn[:2]], turn.since, key))
    return [key for *_, key in sorted(ranked)[:most]]
