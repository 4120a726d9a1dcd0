"""Why a lease that came later comes first, or has started: a sentence for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weft.objects.quantity import format_duration, format_time
from weft.scheduler.lease.backfill import LeaseQueue, Queued

Name = Callable[[str, str], str]  # of the workload at this key, for those who read of this project


def describe_passing(leases: LeaseQueue, ordered: Sequence[Queued], now: float, name: Name) -> dict[str, str]:
    """Say why later leases passed those of ``ordered`` (the next one first), by lease. What comes first now counts before what has
    started."""
    found: dict[str, str] = {}
    for place, lease in enumerate(ordered):
        passing = next((other for other in ordered[:place] if other.arrival > lease.arrival), None)
        started = leases.passed.get(lease.id)
        if passing is not None:
            reason = _explain(leases, passing, lease, now)
            found[lease.id] = f"{name(passing.keys[0], lease.project)} came later and comes first: {reason}"
        elif started is not None:
            found[lease.id] = (
                f"{name(started.key, lease.project)} started before it at {format_time(started.at)}: expected to run "
                f"{format_duration(started.seconds)} and to take nothing of what is held for this one"
            )
    return found


def _explain(leases: LeaseQueue, first: Queued, then: Queued, now: float) -> str:
    if first.level > then.level:
        return f"its priority is {first.level:g}, this one's {then.level:g}"
    if first.project != then.project and leases.find_urgency(first, now) <= leases.find_urgency(then, now):
        return "its project has a smaller share of the cluster"
    if first.predicted < then.predicted:
        return f"it is expected to run {_describe(first)}, this one {_describe(then)}"
    return f"it takes less of the cluster, and is expected to run {_describe(first)}, this one {_describe(then)}"


def _describe(lease: Queued) -> str:
    """``4m of the 2h requested``"""
    requested, predicted = format_duration(lease.requested), format_duration(max(1.0, round(lease.predicted)))
    return requested if predicted == requested else f"{predicted} (of {requested} requested)"
