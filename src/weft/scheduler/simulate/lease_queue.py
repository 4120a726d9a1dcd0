"""A log of jobs, replayed through a queue for one cluster: when each would have started."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from weft.contracts.policy import Flags, Values
from weft.objects.errors import InvalidInput
from weft.scheduler.lease.backfill import MODELS, SHORTEST_SECONDS, LeaseQueue, Queued, find_moment
from weft.scheduler.simulate.swf import Job

_REPORTED_EVERY = 1000  # jobs


class Processors:
    """The processors of a cluster, all alike: a lease takes any of them. ``begin`` each pass of its queue."""

    def __init__(self, count: int, *, all_ends: bool) -> None:
        self.free = float(count)
        self._all_ends = all_ends
        self._running: dict[str, tuple[float, float]] = {}  # when each has to be over, and its processors
        self._now = 0.0
        self._moment, self._extra = math.inf, 0.0  # of the reservation: when it is, and what is left beside it then

    def begin(self, now: float) -> None:
        self._now, self._moment = now, math.inf

    def end(self, id_: str) -> None:
        self.free += self._running.pop(id_)[1]

    def start(self, lease: Queued) -> bool:
        if lease.size > self.free:
            return False
        self.free -= lease.size
        self._running[lease.id] = self._now + lease.requested, lease.size
        return True

    def hold(self, lease: Queued) -> bool:
        ends = self._running.values()
        self._moment, self._extra = find_moment(lease.size, self.free, ends, all_ends=self._all_ends)
        return True

    def may_ever_fit(self, amounts: Values) -> Flags:
        fits: Flags = np.ones(amounts.shape[1], dtype=bool)  # ``replay`` refuses the others
        return fits

    def may_fit(self, amounts: Values, ends: Values) -> Flags:
        fits: Flags = (amounts[0] <= self.free) & ((ends <= self._moment) | (amounts[0] <= self._extra))
        return fits

    def start_beside(self, lease: Queued, seconds: float) -> bool:
        if self._now + seconds > self._moment:
            if lease.size > self._extra:
                return False
            self._extra -= lease.size
        return self.start(lease)


class Replay(msgspec.Struct):
    """Result of a replay; seconds on the log's clock."""

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
    by_id: dict[str, Job] = {}
    for job in jobs:
        if by_id.setdefault(job.id, job) is not job:
            raise InvalidInput(f"job {job.id} appears twice in the log", hint="each job must have a number of its own")
    queue, known = LeaseQueue(MODELS[model]), model == "easy-sjbf-clairvoyant"
    cluster = Processors(processors, all_ends=queue.model.all_ends)
    ends: list[tuple[float, str]] = []
    starts: dict[str, float] = {}
    arrived, ended = 0, 0
    while arrived < len(jobs) or ends:
        now = min(ends[0][0] if ends else float("inf"), jobs[arrived].arrival if arrived < len(jobs) else float("inf"))
        while ends and ends[0][0] == now:
            job = by_id[heapq.heappop(ends)[1]]
            cluster.end(job.id)
            queue.learn(job.owner, job.run)
            ended += 1
            if ended % _REPORTED_EVERY == 0:
                report(ended)
        while arrived < len(jobs) and jobs[arrived].arrival == now:
            job = jobs[arrived]
            requested, amount = job.run if known else job.requested, float(job.processors)
            queue.put(Queued(job.id, job.owner, job.arrival, (amount, 0.0), requested, amount))
            arrived += 1
        if not len(queue) or not cluster.free:
            continue
        cluster.begin(now)
        for lease in queue.choose(cluster, now):
            queue.drop(lease.id)
            starts[lease.id] = now
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
