"""The queue of leases as the scheduler runs it, on its snapshot of nodes and its calendar: how long the jobs of a log wait, and how
long a decision takes while ten thousand wait.

The log is replayed as by ``weft simulate leases``, event by event; but who starts is asked of the scheduler's queue, which searches
the calendar of one node with as many cores as the cluster had processors. ``weft`` is judged as in the benchmark ``leases``: by the
mean over the log and eight perturbed copies.
"""

from __future__ import annotations

import gc
import heapq
import random
import statistics
import time
from collections.abc import Sequence

import msgspec

from benchmarks.leases import DATA, LOGS, SEEDS, perturb
from benchmarks.measurement import Figure, Measurement
from weft.contracts.policy import Request
from weft.kinds.fields.lease import LeaseRequest, check_lease
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.gang.leases import LeasedMember
from weft.scheduler.lease.backfill import SHORTEST_SECONDS
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.placement.queue_nodes import QueuedLease, choose_starts
from weft.scheduler.simulate.lease_queue import replay
from weft.scheduler.simulate.swf import Job, read_swf
from weft.scheduler.table.snapshot import NodeFacts, Snapshot

LOG = LOGS[0]
MOST_RATIO = 0.65
WAITING, EVENTS, NODES, CORES = 10_000, 2_000, 100, 100
PROJECTS, NOWHERE = 20, 300
MOST_MS = 10.0
MIB, GIB = 2**20, 2**30


class Held:
    """What each project has of the cores, as a share."""

    def __init__(self, cores: float) -> None:
        self._cores = cores
        self.held: dict[str, float] = {}

    def weighted(self, project: str) -> float:
        return self.held.get(project, 0.0) / self._cores

    def suppose(self, key: str) -> None:
        """``key``: PROJECT/CORES/JOB."""
        project, cores, _ = key.split("/")
        self.held[project] = self.held.get(project, 0.0) + float(cores)


class Cluster:
    """Nodes with so many cores each; ``starts`` by the job's id."""

    def __init__(self, nodes: int, cores: int) -> None:
        snapshot = Snapshot()
        for number in range(nodes):
            name = f"n{number:03}"
            snapshot.put_node(NodeFacts(name, name, (cores * 1000, 1000 * GIB, GIB), True, False, frozenset({"q35"})))
        self.engine = Engine(snapshot)
        self.starts: dict[str, float] = {}
        self.ends: list[tuple[float, str]] = []
        self._jobs: dict[str, Job] = {}

    def arrive(self, job: Job, project: str = "", *, nowhere: bool = False) -> None:
        """``nowhere``: it comes before the others, and no node takes it."""
        asked = LeaseRequest(duration=job.requested)
        check_lease(asked)
        amounts = job.processors * 1000, MIB + (len(self._jobs) if nowhere else 0), 0
        request = Request(amounts, "none" if nowhere else "q35", "least_loaded")
        self._jobs[job.id] = job
        self.engine.leases.put(
            QueuedLease(
                job.id,
                job.owner,
                job.arrival,
                amounts[:2],
                job.requested,
                job.processors,
                level=float(nowhere),
                project=project,
                keys=(f"{project}/{job.processors}/{job.id}",),
                members=(LeasedMember(request, job.id, f"vm/{job.id}", asked, None, 0.0),),
            )
        )

    def end(self, id_: str) -> None:
        job = self._jobs.pop(id_)
        self.engine.snapshot.drop_allocation(id_)
        self.engine.leases.learn(job.owner, job.run)

    def decide(self, now: float, shares: Held | None = None) -> float:
        """Seconds of CPU time that it took to find who starts. They start."""
        snapshot, began = self.engine.snapshot, time.process_time()
        found = choose_starts(self.engine, now, shares)
        took = time.process_time() - began
        for lease, places in found:
            job, place = self._jobs[lease.id], places[0]
            self.engine.leases.drop(lease.id)
            held = CalendarEntry(
                snapshot.uids[place.row], now, now + job.requested, lease.members[0].request.amounts[:2]
            )
            snapshot.put_leased(lease.id, held, 0)
            self.starts[lease.id] = now
            heapq.heappush(self.ends, (now + job.run, lease.id))
        return took


def run_log(jobs: Sequence[Job], processors: int) -> dict[str, float]:
    cluster, arrived = Cluster(1, processors), 0
    ends = cluster.ends
    while arrived < len(jobs) or ends:
        now = min(ends[0][0] if ends else float("inf"), jobs[arrived].arrival if arrived < len(jobs) else float("inf"))
        while ends and ends[0][0] == now:
            cluster.end(heapq.heappop(ends)[1])
        while arrived < len(jobs) and jobs[arrived].arrival == now:
            cluster.arrive(jobs[arrived])
            arrived += 1
        cluster.decide(now)
    return cluster.starts


def read_slowdown(jobs: Sequence[Job], starts: dict[str, float]) -> float:
    slowdowns = [max(1.0, (starts[job.id] - job.arrival + job.run) / max(job.run, SHORTEST_SECONDS)) for job in jobs]
    return sum(slowdowns) / len(slowdowns)


def time_decisions(jobs: Sequence[Job], projects: int = 1, nowhere: int = 0) -> list[float]:
    """CPU seconds of each decision at the end of a lease, while ``WAITING`` others of the log's jobs, drawn at random, wait; and
    ``nowhere`` that come before them, each with a request of its own, and fit on no node."""
    draw, cluster = random.Random(327), Cluster(NODES, CORES)
    shares = Held(NODES * CORES) if projects > 1 else None
    now, count = 1_800_000_000.0, 0

    def arrive() -> None:
        nonlocal count
        count += 1
        job = msgspec.structs.replace(draw.choice(jobs), id=f"job-{count}", arrival=now)
        cluster.arrive(job, f"p{count % projects}", nowhere=count <= nowhere)

    for _ in range(nowhere + WAITING):
        arrive()
        now += 1.0
    before = -1
    while len(cluster.starts) > before or cluster.engine.leases.unfinished:  # until no more fit
        before = len(cluster.starts)
        cluster.decide(now, shares)
    took: list[float] = []
    gc.collect()
    for _ in range(EVENTS):
        while len(cluster.engine.leases) < nowhere + WAITING:
            arrive()
        now, ended = cluster.ends[0][0], heapq.heappop(cluster.ends)[1]
        cluster.end(ended)
        took.append(cluster.decide(now, shares))
    return sorted(took)


def measure() -> Measurement:
    began = time.process_time()
    jobs = read_swf(DATA / "swf" / LOG.file)
    logs = [jobs, *(perturb(jobs, seed) for seed in SEEDS)]
    found = [run_log(one, LOG.processors) for one in logs]
    ours = [read_slowdown(one, starts) for one, starts in zip(logs, found, strict=True)]
    peers = [replay(one, LOG.processors, "easy-sjbf").average_bounded_slowdown for one in logs]
    ratios = [a / b for a, b in zip(ours, peers, strict=True)]
    simulated = replay(jobs, LOG.processors, "weft").starts
    equal = sum(found[0][job.id] == simulated[job.id] for job in jobs)
    took = time_decisions(jobs)
    p50, p99 = took[len(took) // 2] * 1000, took[int(len(took) * 0.99)] * 1000
    shared = time_decisions(jobs, PROJECTS, NOWHERE)
    shared50, shared99 = shared[len(shared) // 2] * 1000, shared[int(len(shared) * 0.99)] * 1000
    seconds = time.process_time() - began
    return Measurement(
        "queue",
        f"The scheduler's queue of leases on the first part of {LOG.name} ({LOG.processors} processors as the cores of one node) "
        f"and {len(SEEDS)} perturbed copies: average bounded slowdown (10 s). And decisions at the end of a lease while "
        f"{WAITING:,} jobs of that log wait for {NODES} nodes of {CORES} cores: CPU time until all who start are found. "
        f"{seconds:.0f} s of CPU time in all.",
        [
            Figure(
                f"{LOG.name}: live queue",
                f"{ours[0]:.2f}",
                f"easy-sjbf {peers[0]:.2f}",
                f"{statistics.mean(ratios):.3f}× ({min(ratios):.2f}–{max(ratios):.2f}, n={len(ratios)})",
                f"mean ≤ {MOST_RATIO}×",
                statistics.mean(ratios) <= MOST_RATIO,
            ),
            Figure(f"{LOG.name}: starts as simulated", f"{equal} of {len(jobs)}", goal="all", kept=equal == len(jobs)),
            Figure(f"a decision, {WAITING:,} waiting, median", f"{p50:.2f} ms"),
            Figure(
                f"a decision, {WAITING:,} waiting, p99", f"{p99:.2f} ms", goal=f"≤ {MOST_MS:g} ms", kept=p99 <= MOST_MS
            ),
            Figure(
                f"the same of {PROJECTS} projects, and {NOWHERE} before them that fit nowhere, each unlike the others: p99",
                f"{shared99:.2f} ms (median {shared50:.2f})",
                goal=f"≤ {MOST_MS:g} ms",
                kept=shared99 <= MOST_MS,
            ),
        ],
    )
