"""A log of jobs through the real scheduler: a store in memory, nodes that only pretend, and time that jumps between
events."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from tests.scenario.controllers_lab import DIGEST, GIB, MIB, Journal, VirtualClock

from weft.contracts.store import Delete, Lease, Put, Write, epoch_of
from weft.informer.cache import Cache
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import make_view
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.fields.lease import LEASE_ENDED, LeaseRequest, check_lease
from weft.kinds.image import ImageStatus
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Condition, Envelope, encode_envelope, merge_part
from weft.objects.identity import new_uid
from weft.scheduler.loop import Scheduler
from weft.scheduler.simulate.swf import Job
from weft.store.memory import MemoryStore

_TURNS = 40  # of the event loop without anything to decide on: the scheduler rests


class PatientStore(MemoryStore):
    """Leadership lasts, as hours pass in one step."""

    async def grant(self, name: str, holder: str, ttl_seconds: float, digest: bytes = b"") -> Lease | None:
        return await super().grant(name, holder, 1e8, digest)


class QueueLab:
    """``async with QueueLab([100]) as lab``: a node of 100 cores. ``starts`` are those of leases, by the name of their VM."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self.clock = VirtualClock()
        self.store = PatientStore(self.clock)
        self.starts: dict[str, float] = {}
        self._keys: dict[str, str] = {}  # of allocations, by the name of their workload
        self._sizes = nodes
        self._tasks: list[asyncio.Task[Any]] = []
        self.cache: Cache
        self.scheduler: Scheduler
        self._leadership: LeaderLease

    async def __aenter__(self) -> QueueLab:
        await self.store.open()
        epoch = epoch_of((await self.store.list("/vm/", limit=1)).cursor)
        image = ImageStatus(phase="Available", sha256=DIGEST, size=MIB, virtual_size=MIB)
        writes: list[Write] = [_put("image", "tiny", {"url": "file:///none"}, "default", status=image)]
        for number, cores in enumerate(self._sizes):
            report = NodeReport(
                version="0", cpu=float(cores), memory=1000 * GIB, disk=100_000 * GIB, machines=["q35"], epoch=epoch
            )
            writes.append(
                _put("node", f"n{number}", {}, None, status=NodeStatus(phase="Ready", since=0.0), report=report)
            )
        await self.store.commit(writes)
        await self.start()
        return self

    async def start(self) -> None:
        """A scheduler that reads all that is stored."""
        self.cache = Cache(self.store, make_view(), self.clock)
        leadership = self._leadership = LeaderLease(
            self.store, self.cache, Journal(), self.clock, "controllers", new_uid()
        )
        self._tasks = [asyncio.ensure_future(self.cache.run())]
        await leadership.begin()
        self.scheduler = Scheduler(leadership)
        self._tasks.append(asyncio.ensure_future(self.scheduler.run()))
        await self.settle()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._leadership.end()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def settle(self) -> None:
        """Let the scheduler work until it rests; no time passes."""
        rests = 0
        ready = getattr(asyncio.get_running_loop(), "_ready", None)  # of asyncio's own loop: what else could run now
        while rests < _TURNS:
            await asyncio.sleep(0)
            intake = self.scheduler.intake
            rests = 0 if intake.queue.ready or intake.pass_due else rests + 1
            if rests and ready is not None and not ready:
                break
        for task in self._tasks:
            if task.done():
                task.result()

    async def write(self, *writes: Write) -> None:
        """All of them in one commit; then the scheduler works until it rests."""
        await self.store.commit(writes)
        await self.settle()
        for item in self.cache.view.of_kind("allocation").values():
            spec = item.spec(AllocationSpec)
            if spec.lease is not None:
                self.starts.setdefault(spec.workload.name, spec.lease.start)
            self._keys[spec.workload.name] = item.key

    @property
    def placed(self) -> set[str]:
        """The names of workloads that have a place, or had one."""
        return set(self._keys)

    async def run(self, jobs: Sequence[Job]) -> None:
        """Each arrives at its time and runs as long as it does; all that is at one moment is one commit."""
        runs = {f"job-{job.id}": job.run for job in jobs}
        ends: list[tuple[float, str]] = []
        arriving = deque(jobs)
        while arriving or ends:
            now = min([*(end for end, _ in ends[:1]), *(job.arrival for job in itertools.islice(arriving, 1))])
            self.clock.advance(now - self.clock.now())
            writes: list[Write] = []
            while ends and ends[0][0] == now:
                writes.append(self.end(heapq.heappop(ends)[1]))
            while arriving and arriving[0].arrival == now:
                job = arriving.popleft()
                writes.append(
                    self.make(f"job-{job.id}", job.processors, job.requested, owner=job.owner, at=job.arrival)
                )
            before = self.placed
            await self.write(*writes)
            for name in self.placed - before:
                heapq.heappush(ends, (self.starts[name] + runs[name], name))

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.settle()

    def delete(self, name: str) -> list[Write]:
        """Its VM and its allocation."""
        return [Delete(f"/vm/default/{name}"), Delete(self._keys.pop(name))]

    def make(
        self,
        name: str,
        cores: int,
        requested: float | None,
        *,
        owner: str = "ann",
        at: float | None = None,
        priority: int = 0,
        node: str | None = None,
        memory: int = MIB,
    ) -> Put:
        """A VM with a best-effort lease; without ``requested`` seconds it has none."""
        lease = LeaseRequest(duration=requested, priority=priority) if requested is not None else None
        if lease is not None:
            check_lease(lease)
        spec = VmSpec(image="tiny", cpu=float(cores), memory=memory, node=node, grace=0.0, networks=[], lease=lease)
        at = self.clock.now() if at is None else at
        return _put("vm", name, spec, "default", status=WorkloadStatus(observed_generation=1), at=at, by=owner)

    def end(self, name: str) -> Put:
        """Its node reports that its lease is over."""
        item = self.cache.view.get(self._keys[name])
        assert item is not None
        spec = item.spec(AllocationSpec)
        assert spec.lease is not None
        report = AllocationReport(
            incarnation=spec.incarnation, state="stopped", reason=LEASE_ENDED, started_at=spec.lease.start
        )
        envelope = msgspec.structs.replace(item.envelope)
        envelope.report = merge_part(envelope.report, report)
        return Put(item.key, encode_envelope(envelope))


def _put(
    kind: str,
    name: str,
    spec: Any,
    project: str | None,
    *,
    status: msgspec.Struct | None = None,
    report: msgspec.Struct | None = None,
    at: float = 0.0,
    by: str = "",
) -> Put:
    envelope = Envelope(
        kind=kind,
        name=name,
        uid=new_uid(),
        project=project,
        created_at=at,
        created_by=by or msgspec.UNSET,
        spec=msgspec.Raw(msgspec.json.encode(spec)),
    )
    envelope.generation = 1
    if status is not None:
        envelope.status = msgspec.Raw(msgspec.json.encode(status))
    if report is not None:
        envelope.report = msgspec.Raw(msgspec.json.encode(report))
    if kind == "node":
        envelope.conditions = [Condition("Ready", "True", "Ready", "", at, 1)]
    return Put(envelope.key, encode_envelope(envelope))
