"""A log of jobs, replayed through a queue for one cluster: when each would have started."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import msgspec

from weft.objects.errors import InvalidInput
from weft.scheduler.lease.backfill import MODELS, SHORTEST_SECONDS, Queued, choose
from weft.scheduler.lease.prediction import RunTimes
from weft.scheduler.simulate.swf import Job

_REPORTED_EVERY = 1000  # jobs


class Replay(msgspec.Struct):
    """What came of it; seconds on the log's clock."""

    starts: dict[str, float]
    average_bounded_slowdown: float  # of (waited + ran) / ran, at least 1; ran counts as 10 s at least
    longest_wait: float
    utilisation: float  # 0 to 1: of the processors from the first arrival to the last end


def replay(
    jobs: Sequence[Job], processors: int, model: str, report: Callable[[int], None] = lambda ended: None
) -> Replay:
    """``jobs`` by arrival; ``model`` is one of MODELS. All that ends at an instant ends first, then all that arrives there does,
    then the queue is looked through once. ``report`` is called with the number of jobs ended. Raises InvalidInput for a job that
    never fits."""
    for job in jobs:
        if job.processors > processors:
            raise InvalidInput(
                f"job {job.id} needs {job.processors} processors, more than --nodes {processors}",
                field="--nodes",
                hint="give --nodes as many processors as the cluster of the log had",
            )
    rules, known, learns = MODELS[model], model == "easy-sjbf-clairvoyant", model == "weft"
    run_times = RunTimes()
    queue: dict[str, Queued] = {}
    waiting: dict[str, dict[str, Queued]] = {}  # by owner
    by_id: dict[str, Job] = {}
    for job in jobs:
        if by_id.setdefault(job.id, job) is not job:
            raise InvalidInput(f"job {job.id} appears twice in the log", hint="each job must have a number of its own")
    ends: list[tuple[float, str]] = []
    running: dict[str, tuple[float, int]] = {}
    starts: dict[str, float] = {}
    free, arrived, ended = processors, 0, 0
    while arrived < len(jobs) or ends:
        now = min(ends[0][0] if ends else float("inf"), jobs[arrived].arrival if arrived < len(jobs) else float("inf"))
        while ends and ends[0][0] == now:
            job = by_id[heapq.heappop(ends)[1]]
            free += running.pop(job.id)[1]
            ended += 1
            if ended % _REPORTED_EVERY == 0:
                report(ended)
            if learns:
                run_times.add(job.owner, job.run)
                for lease in waiting.get(job.owner, {}).values():
                    lease.predicted = run_times.predict(lease.owner, lease.requested)
        while arrived < len(jobs) and jobs[arrived].arrival == now:
            job = jobs[arrived]
            requested = job.run if known else job.requested
            predicted = run_times.predict(job.owner, requested) if learns else requested
            lease = Queued(job.id, job.owner, job.arrival, job.processors, requested, predicted)
            queue[job.id] = waiting.setdefault(job.owner, {})[job.id] = lease
            arrived += 1
        if not queue or not free:
            continue
        for lease in choose([*queue.values()], [*running.values()], free, now, rules):
            del queue[lease.id], waiting[lease.owner][lease.id]
            free -= lease.amount
            starts[lease.id] = now
            running[lease.id] = (now + lease.requested, lease.amount)
            heapq.heappush(ends, (now + by_id[lease.id].run, lease.id))
    return _measure(jobs, starts, processors)


def _measure(jobs: Sequence[Job], starts: dict[str, float], processors: int) -> Replay:
    if not jobs:
        return Replay({}, 0.0, 0.0, 0.0)
    waits = [starts[job.id] - job.arrival for job in jobs]
    slowdowns = [
        max(1.0, (wait + job.run) / max(job.run, SHORTEST_SECONDS)) for job, wait in zip(jobs, waits, strict=True)
    ]
    span = max(starts[job.id] + job.run for job in jobs) - jobs[0].arrival
    work = sum([job.run * job.processors for job in jobs])
    return Replay(starts, sum(slowdowns) / len(jobs), max(waits), work / (processors * span))
