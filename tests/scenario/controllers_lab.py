"""A fabric in one process for tests of the controllers: a store in memory, nodes that only pretend, and time moved by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from weft.agent.state.lease import Stage, find_stage
from weft.contracts.journal import Event
from weft.contracts.store import AtRevision, Batch, Delete, Precondition, PreconditionFailed, Put, Write, epoch_of
from weft.controllers.asking import Asking
from weft.controllers.registry import CONTROLLERS, Needs, Registered
from weft.informer.leader_lease import LeaderLease
from weft.kinds.allocation import AllocationReport, AllocationSpec, Step
from weft.kinds.container import ContainerSpec, check_container
from weft.kinds.endpoint import EndpointSpec
from weft.kinds.fields.lease import LEASE_ENDED, LEASE_WAITS, PREEMPTED, LeaseRequest, LeaseStatus, check_lease
from weft.kinds.fields.service.readiness import ReadinessReport, is_service, name_port
from weft.kinds.image import ImageStatus
from weft.kinds.job import JobSpec, JobStatus, TaskSpec, check_job
from weft.kinds.node import NodeReport
from weft.kinds.parts.workload import WorkloadMarks, WorkloadSpec, WorkloadStatus, claim_places
from weft.kinds.record import Claim
from weft.kinds.vm import VmSpec
from weft.launch.server.controllers import decide
from weft.objects.envelope import Condition, Envelope, decode_envelope, decode_part, encode_envelope, merge_part
from weft.objects.identity import new_uid, object_key
from weft.store.memory import MemoryStore

GIB = 1024**3
MIB = 1024**2
DIGEST = "ab" * 32


class VirtualClock:
    """Time stands still until ``advance``; sleepers wake in order."""

    def __init__(self) -> None:
        self._elapsed = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    def now(self) -> float:
        return 1_700_000_000.0 + self._elapsed

    def elapsed(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._count), future))
        await future

    def next_in(self) -> float:
        """Seconds until the next sleeper wakes."""
        return min((at - self._elapsed for at, _, future in self._sleepers if not future.done()), default=math.inf)

    def advance(self, seconds: float) -> None:
        self._elapsed += seconds
        while self._sleepers and self._sleepers[0][0] <= self._elapsed:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)


class SlowStore(MemoryStore):
    """A store on a long line: a commit takes effect some turns after it was sent, is answered some turns later, and
    seen by those who watch later still."""

    def __init__(self, clock: VirtualClock, seed: int = 0) -> None:
        super().__init__(clock)
        self._turns = random.Random(seed)

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        await self._wait()
        revision = await super().commit(writes, preconditions, idempotency_key=idempotency_key)
        await self._wait()
        return revision

    async def watch(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        async with aclosing(super().watch(prefix, cursor)) as batches:
            async for batch in batches:
                await self._wait()
                yield batch

    async def _wait(self) -> None:
        for _ in range(self._turns.randrange(8)):
            await asyncio.sleep(0)


class Journal:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def append(self, event: Event) -> None:
        self.events.append(event)

    def reasons(self, name: str) -> list[str]:
        return [event.reason for event in self.events if event.object.name == name]


class PretendNode:
    """An agent without a machine: reports each allocation as what its wish asks for, one step at a time."""

    def __init__(self, lab: Lab, name: str, **report: Any) -> None:
        self.lab = lab
        self.name = name
        self.uid = new_uid()
        self.report = NodeReport(
            **{
                "version": "0",
                "address": f"10.0.0.{len(lab.nodes) + 1}",
                "cpu": 8.0,
                "memory": 16 * GIB,
                "disk": 100 * GIB,
                "machines": ["q35", "microvm"],
                "capabilities": ["asks-first", "gpu-shares"],
                **report,
            }
        )
        self.alive = False
        self.saying = b""  # what its heartbeats tell of use
        self.guards = True  # it ends what it runs once it isn't heard
        self.slow = False  # a slow node reports nothing of its allocations until told
        self.running: dict[str, AllocationReport] = {}  # what "runs" here, by allocation uid
        self.specs: dict[str, AllocationSpec] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._waking: dict[str, object] = {}  # the stages of leases whose ends are waited for
        # What containers that run once do here: for how long, and with which exit code they end (see EndsAs).
        self.program: Callable[[AllocationSpec], EndsAs | None] = lambda spec: None
        self.digest = ""  # of the image that containers run here
        self.ready_for = ""  # uid of a service whose check all that runs here passes
        self.listens: Callable[[AllocationSpec], bool] = lambda spec: True  # whether its published ports answer
        self.refuses: dict[str, str] = {}  # why machines with a firmware can't start here
        self.fails_at: Callable[[AllocationSpec], str] = lambda spec: ""  # the stage of a start that can't be done here
        self.stuck = ""  # why they can't be begun here
        self.began: list[str] = []  # names of those, each time one began

    async def join(self) -> None:
        envelope = Envelope(kind="node", name=self.name, uid=self.uid, created_at=self.lab.clock.now())
        await self.lab.store.commit([Put(envelope.key, encode_envelope(envelope))])
        await self.start()

    async def start(self) -> None:
        self.alive = True
        await self.heartbeat()
        await self.write_report(contact=new_uid())
        self._tasks = [asyncio.ensure_future(self._beat()), asyncio.ensure_future(self._work())]

    async def die(self) -> None:
        self.alive = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._waking.clear()  # what it slept for went with it

    async def heartbeat(self) -> None:
        await self.lab.store.grant(f"node/{self.uid}", self.uid, 30.0, self.saying)

    async def write_report(self, **changes: Any) -> None:
        self.report = msgspec.structs.replace(self.report, **changes)

        def change(envelope: Envelope) -> None:
            envelope.report = merge_part(envelope.report, self.report)

        await self.lab.change(object_key("node", None, self.name), change)

    async def _end(self, key: str, uid: str, end: EndsAs) -> None:
        """Have what runs come to its end."""
        await self.lab.clock.sleep(end.seconds)
        if self.running[uid].state != "running":
            return
        good = end.exit_code == 0
        self.running[uid] = ended = msgspec.structs.replace(
            self.running[uid],
            state="stopped" if good else "failed",
            ended=True,
            exit_code=end.exit_code,
            reason=end.reason or ("completed" if good else "exited"),
            message="" if good else f"exit code {end.exit_code}",
            ready=None,
        )

        def change(target: Envelope) -> None:
            target.report = merge_part(target.report, ended)

        await self.lab.change(key, change)

    async def _beat(self) -> None:
        while True:
            await self.lab.clock.sleep(5.0)
            await self.heartbeat()

    async def _work(self) -> None:
        prefix = f"/allocation/-/{self.uid}."
        page = await self.lab.store.list(prefix)
        for entry in page.entries:
            await self.act(entry.key)
        async for batch in self.lab.store.watch(prefix, page.cursor):
            for change in batch.changes:
                if change.value is not None:
                    await self.act(change.key)

    async def _wake(self, key: str, seconds: float) -> None:
        """Act when the next stage of a lease begins."""
        await self.lab.clock.sleep(seconds)
        await self.act(key)

    async def act(self, key: str) -> None:
        """One step of one allocation."""
        entry = await self.lab.store.get(key)
        if entry is None or self.slow:
            return
        envelope = decode_envelope(entry.value, entry.revision)
        spec = decode_part(envelope.spec, AllocationSpec)
        if spec.role == "reserved":
            assert not envelope.finalizers, "room waits for a node that knows nothing of it"
            return
        if spec.role == "lost" and any(envelope.uid in text for text in self.report.orphans):
            return  # an orphan waits for the server's word
        old = self.running.get(envelope.uid, AllocationReport())
        stage, seconds = find_stage(spec.lease, self.lab.clock.now())
        if seconds < math.inf and self._waking.get(key) != (stage, spec.lease):
            self._waking[key] = (stage, spec.lease)
            self._tasks.append(asyncio.ensure_future(self._wake(key, seconds)))
        runs = spec.desired == "run" and envelope.deleting_since is None
        refused, stage_failed = spec.firmware in self.refuses and runs, self.fails_at(spec) if runs else ""
        if (refused or stage_failed) and old.state == "failed":
            return  # an agent would try again after a while, and the same would come of it
        new = step(spec, old, envelope.deleting_since is not None, stage)
        new.generation = envelope.generation
        if spec.once and old.ended and envelope.deleting_since is None:
            return  # it rests
        if spec.once and spec.desired == "stop":
            new.ended, new.exit_code = True, 143 if old.state == "running" else None
        if spec.once and spec.desired == "run" and self.stuck:
            new = msgspec.structs.replace(old, state="failed", reason="imageGone", message=self.stuck)
        if refused and new.state == "starting":
            new.state, new.reason, new.message = "failed", "invalidInput", self.refuses[spec.firmware]
        if old.state == "failed":
            new.steps = []
        if stage_failed and new.state == "starting":
            new.state, new.reason, new.message = "failed", "driverFailed", "no space for its socket"
            new.steps = [Step(name=stage_failed, state="failed")]
        if self.ready_for and new.state == "running":
            new.readiness = {self.ready_for: ReadinessReport(ready=True)}
        if new.state == "running":
            said = {name_port(port): ReadinessReport(ready=self.listens(spec)) for port in spec.asked_ports}
            new.readiness = {**{one: new.readiness[one] for one in new.readiness if is_service(one)}, **said}
        new.guarded = spec.loss_guard if self.guards and spec.loss_guard % 2 else 0
        new.image = self.digest if spec.container is not None else ""
        self.running[envelope.uid] = new
        self.specs[envelope.uid] = spec
        if new.state == "running" and old.state != "running":
            new.started_at = self.lab.clock.now()
        if spec.once and new.state == "running" and old.state != "running":
            self.began.append(spec.workload.name)
            if (end := self.program(spec)) is not None:
                self._tasks.append(asyncio.ensure_future(self._end(key, envelope.uid, end)))
        if new != decode_part(envelope.report, AllocationReport):

            def change(target: Envelope) -> None:
                target.report = merge_part(target.report, new)

            await self.lab.change(key, change)


class EndsAs(msgspec.Struct, frozen=True):
    seconds: float = 0.0
    exit_code: int | None = 0
    reason: str = ""


def step(spec: AllocationSpec, old: AllocationReport, deleting: bool, stage: Stage = "active") -> AllocationReport:
    """The next thing a well-behaved node reports."""
    new = msgspec.structs.replace(
        old, incarnation=spec.incarnation, desired_count=spec.desired_count, reason="", message=""
    )
    if spec.role == "lost":
        new.state = "released"
        return new
    if deleting:
        new.state = {"running": "stopping", "starting": "stopping"}.get(old.state, "released")  # type: ignore[assignment]
        new.reason = PREEMPTED if stage == "suspended" and new.state == "released" else ""
        return new
    if spec.waits_for and old.state == "pending":
        new.reason = "waiting"
        return new
    if stage == "over":
        alive = old.state in ("running", "starting")
        new.state, new.reason, new.ready = "stopping" if alive else "stopped", "" if alive else LEASE_ENDED, None
        new.ended = not alive
        return new
    if stage == "waits" and old.state == "pending":
        new.reason = LEASE_WAITS
        return new
    if stage in ("ahead", "imminent") and old.state in ("pending", "preparing"):
        new.state, new.reason = "preparing", LEASE_WAITS
        return new
    if stage == "suspended":
        saved = old.state in ("running", "suspended") and spec.desired != "stop"
        message = f"suspended for {spec.lease.suspension.winner}" if spec.lease and spec.lease.suspension else ""
        state: Any = "suspended" if saved else "stopped"
        return msgspec.structs.replace(new, state=state, reason=PREEMPTED, message=message, ready=None)
    if spec.desired == "run":
        if spec.restart_generation > old.restart_generation and old.state in ("running", "starting"):
            new.state = "stopping"
        else:
            order = {"pending": "preparing", "preparing": "starting", "starting": "running", "running": "running"}
            new.state = order.get(old.state, "preparing")  # type: ignore[assignment]
        if new.state in ("preparing", "starting"):
            new.restart_generation = spec.restart_generation
        new.ready = new.state == "running"
        new.boot_id = (
            f"{spec.workload.name}-{spec.incarnation}-{new.restart_generation}" if new.state == "running" else None
        )
    else:
        saved = spec.desired == "suspend" and old.state in ("running", "suspended")
        new.state = "suspended" if saved else "stopped"
        new.ready = None
    return new


class Lab:
    """``async with Lab(tmp_path) as lab``: a store, a network "default", an image "tiny", and the controllers."""

    def __init__(
        self,
        folder: Path,
        *,
        strategy: str = "least_loaded",
        store: MemoryStore | None = None,
        clock: VirtualClock | None = None,
        slow: int | None = None,
    ) -> None:
        self.folder = folder
        self.clock = clock or VirtualClock()
        self.store = store or (MemoryStore(self.clock) if slow is None else SlowStore(self.clock, slow))
        self.journal = Journal()
        self.nodes: dict[str, PretendNode] = {}
        self.has_threads = False
        self.creator = ""  # of what is put from now on
        self._strategy = strategy
        self._controllers: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Lab:
        await self.store.open()
        await self.put("network", "default", {"cidr": "10.0.0.0/16"})
        await self.put_image("tiny")
        self.start_controllers()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._controllers is not None:
            self._controllers.cancel()
            await asyncio.gather(self._controllers, return_exceptions=True)
        for node in self.nodes.values():
            await node.die()

    def start_controllers(
        self, holder: str = "here", *, more: Sequence[Callable[[LeaderLease], Asking]] = (), **settings: Any
    ) -> None:
        """``more``: controllers beside those that have what they need."""
        given = {"images": self.folder / "images", "allow_fetch": [str(self.folder), "127.0.0.0/8"], **settings}
        needs = Needs(**{name: given.pop(name) for name in Needs.__struct_fields__ if name in given})
        self._controllers = asyncio.ensure_future(
            decide(
                self.store,
                self.journal,
                self.clock,
                needs,
                holder=holder,
                strategy=self._strategy,
                controllers=[*CONTROLLERS, *(Registered(lambda lease, _, make=make: make(lease)) for make in more)],
                **given,
            )
        )

    async def kill_controllers(self) -> None:
        """End them wherever they are; raises what they died of if they were dead already."""
        task, self._controllers = self._controllers, None
        if task is None:
            return
        if task.done():
            task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def add_node(self, name: str, **report: Any) -> PretendNode:
        node = self.nodes[name] = PretendNode(self, name, **{"epoch": await self.epoch(), **report})
        await node.join()
        return node

    async def put(
        self,
        kind: str,
        name: str,
        spec: Any,
        *,
        marks: Any = None,
        status: msgspec.Struct | None = None,
        finalizers: tuple[str, ...] = (),
        project: str | None = "default",
    ) -> Envelope:
        envelope = Envelope(
            kind=kind,
            name=name,
            uid=new_uid(),
            project=project,
            created_at=self.clock.now(),
            created_by=self.creator or msgspec.UNSET,
            spec=msgspec.Raw(msgspec.json.encode(spec)),
            finalizers=list(finalizers),
        )
        if marks is not None:
            envelope.marks = msgspec.Raw(msgspec.json.encode(marks))
        if status is not None:
            envelope.status = msgspec.Raw(msgspec.json.encode(status))
        await self.store.commit([Put(envelope.key, encode_envelope(envelope))])
        return envelope

    async def put_image(self, name: str, phase: str = "Available") -> Envelope:
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        (self.folder / "images" / DIGEST).write_bytes(b"")
        status = ImageStatus(phase=phase, sha256=DIGEST, size=10 * MIB, virtual_size=64 * MIB)  # type: ignore[arg-type]
        return await self.put("image", name, {"url": f"file://{self.folder}/none"}, status=status)

    async def put_vm(self, name: str, *, marks: WorkloadMarks | None = None, **spec: Any) -> Envelope:
        """A VM as the API servers make it: with its claims, in one commit."""
        full = VmSpec(**{"image": "tiny", **spec})
        if isinstance(full.lease, dict):
            full.lease = msgspec.convert(full.lease, LeaseRequest)
            check_lease(full.lease)
        return await self.put_workload("vm", name, full, marks)

    async def put_container(self, name: str, **spec: Any) -> Envelope:
        full = ContainerSpec(**{"image": "registry.example.org/web:1", **spec})
        check_container(full)
        return await self.put_workload("container", name, full)

    async def put_job(self, name: str, *, task: dict[str, Any] | None = None, **spec: Any) -> Envelope:
        inner = TaskSpec(**{"image": "registry.example.org/work:1", "cpu": 0.1, **(task or {})})
        full = JobSpec(task=inner, **spec)
        check_job(full)
        return await self.put("job", name, full, finalizers=("job",))

    async def job(self, name: str) -> JobStatus:
        envelope = await self.get(f"/job/default/{name}")
        assert envelope is not None, name
        return decode_part(envelope.status, JobStatus)

    async def until_job(self, name: str, phase: str, seconds: float = 120.0) -> JobStatus:
        async def there() -> bool:
            return (await self.job(name)).phase == phase

        await self.until(there, seconds)
        return await self.job(name)

    async def put_workload(
        self, kind: str, name: str, full: WorkloadSpec, marks: msgspec.Struct | None = None
    ) -> Envelope:
        envelope = Envelope(
            kind=kind,
            name=name,
            uid=new_uid(),
            project="default",
            created_at=self.clock.now(),
            created_by=self.creator or msgspec.UNSET,
            spec=msgspec.Raw(msgspec.json.encode(full)),
            marks=msgspec.Raw(msgspec.json.encode(marks)) if marks is not None else msgspec.UNSET,
            finalizers=["workload"],
        )
        writes: list[Write] = [Put(envelope.key, encode_envelope(envelope))]
        for claim in claim_places(envelope, full):
            if not isinstance(claim, Claim):
                continue  # a chosen address: the controller sees to it, as after a restore
            claimed = Envelope(
                kind=claim.kind,
                name=claim.name,
                uid=new_uid(),
                owner=envelope.ref,
                spec=msgspec.Raw(msgspec.json.encode(claim.spec)),
            )
            writes.append(Put(claimed.key, encode_envelope(claimed)))
        await self.store.commit(writes)
        return envelope

    async def change(self, key: str, change: Callable[[Envelope], None]) -> None:
        """Read, change, write, until it goes through; nothing if the object is gone."""
        while (entry := await self.store.get(key)) is not None:
            envelope = decode_envelope(entry.value, entry.revision)
            change(envelope)
            try:
                await self.store.commit([Put(key, encode_envelope(envelope))], [AtRevision(key, entry.revision)])
                return
            except PreconditionFailed:
                continue

    async def change_spec(self, name: str, kind: str = "vm", **spec: Any) -> None:
        """Change a workload's spec as a person would, and let it start afresh."""
        actions = {one: spec.pop(one) for one in ("restart_generation",) if one in spec}

        def change(envelope: Envelope) -> None:
            envelope.actions = merge_part(envelope.actions, actions)
            envelope.spec = merge_part(envelope.spec, {**msgspec.json.decode(envelope.spec), **spec})
            envelope.generation += 1

        await self.change(f"/{kind}/default/{name}", change)

    async def ask(self, name: str, kind: str, project: str | None = "default", /, **actions: Any) -> None:
        """Set actions of an object as a verb does."""

        def change(envelope: Envelope) -> None:
            envelope.actions = merge_part(envelope.actions, actions)
            envelope.generation += 1

        await self.change(object_key(kind, project, name), change)

    async def delete(self, key: str) -> None:
        def change(envelope: Envelope) -> None:
            envelope.deleting_since = self.clock.now()

        await self.change(key, change)

    async def get(self, key: str) -> Envelope | None:
        entry = await self.store.get(key)
        return None if entry is None else decode_envelope(entry.value, entry.revision)

    async def vm(self, name: str, kind: str = "vm") -> Envelope:
        envelope = await self.get(f"/{kind}/default/{name}")
        assert envelope is not None, name
        return envelope

    async def status(self, name: str, kind: str = "vm") -> WorkloadStatus:
        return decode_part((await self.vm(name, kind)).status, WorkloadStatus)

    async def lease(self, name: str) -> LeaseStatus:
        lease = (await self.status(name)).lease
        return LeaseStatus() if lease is None else lease

    async def until_lease(self, name: str, state: str, seconds: float = 60.0) -> LeaseStatus:
        async def there() -> bool:
            return (await self.lease(name)).state == state

        await self.until(there, seconds)
        return await self.lease(name)

    async def placed(self, name: str, kind: str = "vm") -> Condition | None:
        return (await self.vm(name, kind)).condition("Placed")

    async def every(self, kind: str) -> list[Envelope]:
        page = await self.store.list(f"/{kind}/")
        return [decode_envelope(entry.value, entry.revision) for entry in page.entries]

    async def allocations(self) -> list[AllocationSpec]:
        return [decode_part(envelope.spec, AllocationSpec) for envelope in await self.every("allocation")]

    async def endpoints(self) -> list[EndpointSpec]:
        return [decode_part(envelope.spec, EndpointSpec) for envelope in await self.every("endpoint")]

    async def epoch(self) -> str:
        return epoch_of((await self.store.list("/vm/", limit=1)).cursor)

    async def until(self, true: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
        """Let the fabric work, time passing only when it rests, until ``true``; fails after ``seconds`` of its time, with
        threads not before a minute of real time: what they run may have to wait for a busy machine."""
        ends_at = self.clock.elapsed() + seconds
        patient_until = time.monotonic() + 60.0 if self.has_threads else 0.0
        while True:
            await self._let_work()
            if await true():
                return
            if self._controllers is not None and self._controllers.done():
                self._controllers.result()
            assert self.clock.elapsed() < ends_at or time.monotonic() < patient_until, "it did not come to pass"
            self.clock.advance(0.25)
            if self.has_threads:
                await asyncio.sleep(0.002)  # they need real time

    async def _let_work(self) -> bool:
        """Give every task its turns; whether by then each of them waits for time."""
        ready = getattr(asyncio.get_running_loop(), "_ready", None)  # of asyncio's own loop: what else could run now
        for _ in range(40):
            await asyncio.sleep(0)
            if not self.has_threads and ready is not None and not ready:
                return True
        return False

    async def pass_time(self, seconds: float) -> None:
        """Let the fabric work for so long. Time in which everybody rests passes at once."""
        ends_at = self.clock.elapsed() + seconds
        while (left := ends_at - self.clock.elapsed()) > 0:
            rests = await self._let_work()
            if self._controllers is not None and self._controllers.done():
                self._controllers.result()
            self.clock.advance(min(left, max(0.25, self.clock.next_in()) if rests else 0.25))
            if self.has_threads:
                await asyncio.sleep(0.002)  # they need real time
        await self._let_work()

    async def until_phase(self, name: str, phase: str, seconds: float = 60.0, kind: str = "vm") -> None:
        async def there() -> bool:
            return (await self.status(name, kind)).phase == phase

        await self.until(there, seconds)

    async def place_anew(self, name: str) -> None:
        """Stop and start a VM, the only one with an allocation, and give that up, as when its node is."""
        await self.change_spec(name, run="stop")
        await self.until_phase(name, "Stopped")
        await self.change_spec(name, run="run")
        await self.until_phase(name, "Running")
        (place,) = (await self.store.list("/allocation/")).entries
        await self.store.commit([Delete(place.key)])

        async def elsewhere() -> bool:
            return [one.incarnation for one in await self.allocations()] == [2]

        await self.until(elsewhere)

    async def until_refused(self, name: str, reason: str, kind: str = "vm") -> None:
        async def there() -> bool:
            placed = await self.placed(name, kind)
            return placed is not None and placed.status == "False" and placed.reason == reason

        await self.until(there)

    async def until_gone(self, key: str, seconds: float = 60.0) -> None:
        async def gone() -> bool:
            return await self.store.get(key) is None

        await self.until(gone, seconds)
