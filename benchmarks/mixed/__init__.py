"""10,000 workloads of all kinds on 1,000 nodes of all five types: VMs, containers, containers in machines of their own and the
tasks of jobs, through the whole server, its real API and the real agents over fake drivers.

Sizes are drawn by a seed until the load asks for 97 % of all cores; memory is nearly as scarce. One in eight may only go to nodes
of one type. Nothing is moved, and nothing tried twice but what waits.
"""

from __future__ import annotations

import asyncio
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.connection import Connection
from benchmarks.fabric import make_image, post, running_agents, until
from benchmarks.fabric.enrolment import enrol
from benchmarks.fabric_server import FabricServer, running_server
from benchmarks.measurement import Figure, Measurement
from weft.contracts.driver.host import Capacity
from weft.contracts.policy import Amounts, GpuAsk, Request
from weft.language.parse import read_expression
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.demand import Demand
from weft.scheduler.table.snapshot import NodeFacts, Snapshot

SEED = 1
ASKED, GOAL = 0.97, 0.95
P99_MS = 1.0
GIB = 1 << 30
TYPES = {  # how many nodes, of how many cores and GiB
    "cloud": (400, 64, 256),
    "hybrid": (200, 32, 128),
    "storage": (100, 32, 128),
    "edge": (200, 8, 32),
    "gpu": (100, 96, 384),
}
LEAST = 10_000
BOUND = 0.5
JOBS, TASKS = 30, 100  # each job has so many tasks of one size
BATCH = 500
PATIENCE_SECONDS = 400.0
QUIET_SECONDS = 15.0
IMAGE = "registry.example.org/none:1"


class Wish(msgspec.Struct, frozen=True):
    cpu: float
    memory: int
    type_: str = ""

    def spec(self, **more: Any) -> dict[str, Any]:
        constraint = {"constraint": f"type={self.type_}"} if self.type_ else {}
        return {"cpu": self.cpu, "memory": self.memory, "networks": [], **constraint, **more}


class Outcome(msgspec.Struct, frozen=True):
    wanted: int
    converged_seconds: float
    running: int
    asked: float
    given: float
    memory_asked: float
    p50_ms: float
    p99_ms: float
    decisions: int
    server_seconds: float
    memory_bytes: int


def draw_wish(draw: random.Random, most: float = 24) -> Wish:
    cpu = min(draw.choices((0.5, 1, 2, 4, 8, 16, 24), (8, 18, 25, 25, 14, 7, 3))[0], most)
    type_ = draw.choices(("", "edge", "gpu", "storage"), (50, 2, 4, 4))[0]
    cpu = min(cpu, 2) if type_ == "edge" else cpu
    memory = int(cpu * draw.choice((1, 2, 4, 6)) * draw.uniform(0.75, 1.25) * 16) * GIB // 16
    return Wish(cpu, memory, type_)


def draw_load() -> tuple[list[Wish], list[Wish]]:
    """One wish for all tasks of each job, and one for each other workload: as many as come to ASKED of all cores. Those bound to a
    type ask for at most BOUND of its cores."""
    draw = random.Random(SEED)
    left = ASKED * sum(count * cpu for count, cpu, _ in TYPES.values())
    bound = {type_: BOUND * count * cpu for type_, (count, cpu, _) in TYPES.items()}
    found: tuple[list[Wish], list[Wish]] = ([], [])
    for wishes, most, each in ((found[1], 4.0, TASKS), (found[0], 24.0, 1)):
        while each == 1 or len(wishes) < JOBS:
            wish = draw_wish(draw, most)
            if wish.type_ and wish.cpu * each > bound[wish.type_]:
                wish = Wish(wish.cpu, wish.memory)
            if wish.cpu * each > left:
                break
            left -= wish.cpu * each
            if wish.type_:
                bound[wish.type_] -= wish.cpu * each
            wishes.append(wish)
    if len(found[0]) + JOBS * TASKS < LEAST:
        raise SystemExit(f"only {len(found[0]) + JOBS * TASKS} workloads")
    return found


async def list_all(admin: Connection, path: str) -> list[Any]:
    found: list[Any] = []
    at = path
    while True:
        status, body = await admin.request("GET", at)
        page = msgspec.json.decode(body)
        if status != 200:
            raise SystemExit(f"GET {at}: {status} {body[:300]!r}")
        found += page["items"]
        if not page.get("continue"):
            return found
        at = f"{path}{'&' if '?' in path else '?'}continue={page['continue']}"


async def create(admin: Connection, plural: str, objects: list[dict[str, Any]]) -> None:
    for start in range(0, len(objects), BATCH):
        await post(admin, f"/v1/projects/default/{plural}:batch", {"objects": objects[start : start + BATCH]}, 200)


async def count_running(admin: Connection) -> int:
    running = 0
    for plural in ("vms", "containers"):
        status, body = await admin.request("GET", f"/v1/projects/default/{plural}?fields=status.phase=Running")
        if status != 200:
            raise SystemExit(f"list {plural}: {status} {body[:300]!r}")
        running += len(msgspec.json.decode(body)["items"])
    return running


async def settle(admin: Connection, wanted: int) -> tuple[int, float]:
    """How many run in the end, and when the last of them had come (seconds from now)."""
    begun = changed = time.monotonic()
    running = 0
    while running < wanted and time.monotonic() - begun < PATIENCE_SECONDS:
        now = await count_running(admin)
        if now != running:
            running, changed = now, time.monotonic()
        elif running > wanted // 2 and time.monotonic() - changed > QUIET_SECONDS:
            break  # the others find no room
        await asyncio.sleep(1.0)
    return running, changed - begun


def make_objects(wishes: list[Wish]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """VMs and containers; every twelfth is a container with a machine of its own."""
    machines, containers = [], []
    for number, wish in enumerate(wishes):
        if number % 12 < 7:
            machines.append({"name": f"vm-{number:04}", "spec": wish.spec(image="none")})
        else:
            isolation = "vm" if number % 12 == 11 else "container"
            containers.append({"name": f"c-{number:04}", "spec": wish.spec(image=IMAGE, isolation=isolation)})
    return machines, containers


async def run(server: FabricServer, folder: Path) -> Outcome:
    wishes, jobs = draw_load()
    asked_cpu = sum(w.cpu for w in wishes) + TASKS * sum(w.cpu for w in jobs)
    asked_memory = sum(w.memory for w in wishes) + TASKS * sum(w.memory for w in jobs)
    sizes = {type_: Capacity(cpu, memory * GIB, 1 << 40) for type_, (_, cpu, memory) in TYPES.items()}
    machines, containers = make_objects(wishes)
    types = [type_ for type_, (count, *_) in TYPES.items() for _ in range(count)]
    folders = await enrol(server.context, [f"{type_}-{number:04}" for number, type_ in enumerate(types)], folder)
    for type_, place in zip(types, folders, strict=True):
        (place / "capacity.json").write_bytes(msgspec.json.encode(sizes[type_]))
    admin = await Connection.open(server.context)
    url = f"file://{make_image(server.folder)}"
    await post(admin, "/v1/projects/default/images", {"name": "none", "spec": {"url": url}}, 201)
    policy = {"name": "default", "spec": {"strategy": "fragmentation"}}
    await post(admin, "/v1/placementpolicies", policy, 201)
    with running_agents(folders):
        await until("nodes online", admin, "/v1/nodes?fields=status.phase=Ready", len(folders))
        for type_, place in zip(types, folders, strict=True):
            status, body = await admin.request("PATCH", f"/v1/nodes/{place.name}", {"spec": {"type": type_}})
            if status != 200:
                raise SystemExit(f"node: {status} {body[:300]!r}")
        await until("image", admin, "/v1/projects/default/images?fields=status.phase=Available", 1)
        used = server.cpu_seconds()
        begun = time.monotonic()
        tasks = [
            {
                "name": f"job-{n:02}",
                "spec": {"task": w.spec(image=IMAGE), "array": f"0-{TASKS - 1}", "parallelism": TASKS},
            }
            for n, w in enumerate(jobs)
        ]
        for start in range(0, JOBS):  # all kinds come mixed
            part = slice(start * len(machines) // JOBS, (start + 1) * len(machines) // JOBS)
            await create(admin, "vms", machines[part])
            part = slice(start * len(containers) // JOBS, (start + 1) * len(containers) // JOBS)
            await create(admin, "containers", containers[part])
            await create(admin, "jobs", tasks[start : start + 1])
        created = time.monotonic() - begun
        running, seconds = await settle(admin, len(wishes) + JOBS * TASKS)
        used = server.cpu_seconds() - used
        decisions = await list_all(admin, "/v1/projects/default/decisions")
        given = sum(node["status"]["allocated_cpu"] for node in await list_all(admin, "/v1/nodes"))
        offered = sum(sizes[type_].cpu for type_ in types)
        took = sorted(one["spec"]["took_ms"] for one in decisions)
        return Outcome(
            len(wishes) + JOBS * TASKS,
            created + seconds,
            running,
            asked_cpu / offered,
            given / offered,
            asked_memory / sum(sizes[type_].memory_bytes for type_ in types),
            took[len(took) // 2],
            took[min(len(took) - 1, round(0.99 * len(took)))],
            len(took),
            used,
            server.memory_bytes(),
        )


def time_decisions(wishes: list[Wish], jobs: list[Wish]) -> list[float]:
    """The same load through the engine alone, in milliseconds a decision, sorted: nobody else is at work on these cores then."""
    snapshot = Snapshot()
    for type_, (count, cpu, memory) in TYPES.items():
        for number in range(count):
            name = f"{type_}-{number:04}"
            snapshot.put_node(
                NodeFacts(
                    uid=name,
                    name=name,
                    capacity=(cpu * 1000, memory * GIB, 1 << 40),
                    online=True,
                    cordoned=False,
                    machines=frozenset({"q35"}),
                    texts={"type": type_},
                )
            )
    running: list[tuple[Amounts, GpuAsk | None]] = []
    engine = Engine(snapshot, seed=SEED, demand=Demand(lambda: running, learns=True))
    bound = {type_: read_expression(f"type={type_}") for type_ in TYPES}
    load = [*wishes, *(wish for wish in jobs for _ in range(TASKS))]
    random.Random(SEED).shuffle(load)
    took = []
    for number, wish in enumerate(load):
        amounts = (round(wish.cpu * 1000), wish.memory, 0)
        request = Request(amounts, "q35", "fragmentation", constraint=bound.get(wish.type_))
        begun = time.perf_counter()
        if engine.place(request, f"w{number}", f"a{number}") is not None:
            running.append((amounts, None))
        took.append((time.perf_counter() - begun) * 1000)
    return sorted(took)


def measure() -> Measurement:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="weft-mixed-", dir="/dev/shm") as name, running_server() as server:
        outcome = asyncio.run(run(server, Path(name)))
    alone = time_decisions(*draw_load())
    wanted = outcome.wanted
    types = ", ".join(f"{count} {type_}" for type_, (count, *_) in TYPES.items())
    return Measurement(
        "mixed",
        f"{wanted:,} workloads, of which {JOBS} jobs of {TASKS} tasks, the others VMs, containers and containers with a machine of "
        f"their own as 7 : 4 : 1, on 1,000 nodes ({types}) whose cores they ask for {outcome.asked:.2%} of, and for "
        f"{outcome.memory_asked:.0%} of their memory; one in eight bound to a type; strategy `fragmentation`; real API over TLS, "
        "SQLite, enrolled agents with fake drivers. Server and agents share the machine.",
        [
            Figure(
                "created → all that have room Running",
                f"{outcome.converged_seconds:.0f} s, {outcome.running:,} of {wanted:,} (server's CPU "
                f"{outcome.server_seconds:.0f} s, memory {outcome.memory_bytes / 1e6:.0f} MB)",
            ),
            Figure(
                "the scarcest resource (cores)",
                f"{outcome.given:.2%} given",
                f"{outcome.asked:.2%} asked for",
                goal=f"≥ {GOAL:.0%}",
                kept=outcome.given >= GOAL,
            ),
            Figure(
                "a decision, the engine alone, p50 / p99",
                f"{alone[len(alone) // 2]:.3f} / {alone[len(alone) * 99 // 100]:.3f} ms (n={len(alone):,})",
                goal=f"p99 ≤ {P99_MS:g} ms",
                kept=alone[len(alone) * 99 // 100] <= P99_MS,
            ),
            Figure(
                "a decision on the server that shares two cores with 1,000 agents, explanation and all, p50 / p99",
                f"{outcome.p50_ms:.2f} / {outcome.p99_ms:.2f} ms (n={outcome.decisions:,})",
            ),
        ],
    )
